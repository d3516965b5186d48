"""The demo's picture: a MaxSim alignment as a heat map, lexical weights along its edges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from m3fast.plotting import INK, MODES, MUTED, literal, new_figure, save_png, unframed

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

BAR, MARK = MODES["sparse"], "#e11d48"
CELL, FONT = 0.21, 8.5  # inches per token, points


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One text's tokens after the first, with what the heads said of each.

    Attributes:
        tokens: n - 1 pieces, the last one the end-of-text token.
        weights: float32 [n - 1], lexical weight of each token's id, 0 where it has none.
        vectors: float32 [n - 1, D], unit length.
    """

    tokens: list[str]
    weights: NDArray[np.float32]
    vectors: NDArray[np.float32]


def draw(query: TokenRow, passage: TokenRow, title: str, note: str, file: Path) -> None:
    """Write the picture as PNG.

    Args:
        query: rows of the heat map; passage: its columns.
        title: what is shown; note: a line in small print.
        file: where it goes; replaced only once the picture is whole.
    """
    similarity = query.vectors @ passage.vectors.T  # [query tokens, passage tokens]
    n, m = similarity.shape
    width, height = max(6.0, CELL * m), max(1.6, CELL * n)
    left, right, top = 0.8 + _inches(query.tokens), 2.0, 2.1
    bottom = max(0.7, 0.5 + _inches(passage.tokens))
    size = (left + width + right, top + height + bottom)
    figure = new_figure(size, 130)

    def box(x: float, y: float, w: float, h: float, **kwargs: Any) -> Any:
        return figure.add_axes((x / size[0], y / size[1], w / size[0], h / size[1]), **kwargs)

    heat = box(left, bottom, width, height)
    image = heat.imshow(similarity, cmap="YlGnBu", aspect="auto", vmin=min(0.0, similarity.min()))
    best = similarity.argmax(axis=1)
    heat.scatter(best, np.arange(n), s=26, facecolors="none", edgecolors=MARK, linewidths=1.4)
    heat.set_xticks(range(m), list(map(literal, passage.tokens)), rotation=90, fontsize=FONT)
    heat.set_yticks(range(n), list(map(literal, query.tokens)), fontsize=FONT)
    heat.set_xlabel("passage tokens", color=MUTED)
    heat.set_ylabel("query tokens", color=MUTED)

    above = box(left, bottom + height + 0.12, width, 0.8, sharex=heat)
    above.bar(range(m), passage.weights, color=BAR, width=0.72)
    above.set_ylabel("lexical\nweight", color=MUTED, fontsize=FONT)
    beside = box(left + width + 0.12, bottom, 0.8, height, sharey=heat)
    beside.barh(range(n), query.weights, color=BAR, height=0.72)
    beside.set_xlabel("lexical\nweight", color=MUTED, fontsize=FONT)
    above.tick_params(labelbottom=False, labelsize=FONT - 1)
    beside.tick_params(labelleft=False, labelsize=FONT - 1)
    for axes in (above, beside, heat):
        unframed(axes, INK)
    bar = figure.colorbar(image, cax=box(left + width + 1.2, bottom, 0.14, height))
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=FONT - 1, length=0)
    bar.set_label("cosine", color=MUTED, fontsize=FONT)

    meaning = "mean over query tokens of the best cosine (circled)"
    lines = (
        (0.3, title, 13, INK),
        (0.58, f"MaxSim {similarity.max(axis=1).mean():.3f}: {meaning}", 10, INK),
        (0.82, note, 9, MUTED),
    )
    for down, text, points, colour in lines:
        figure.text(0.2 / size[0], 1 - down / size[1], text, fontsize=points, color=colour)
    save_png(figure, file)


def _inches(tokens: list[str]) -> float:
    # A letter is about 0.6 em wide in matplotlib's own font.
    return max(map(len, tokens)) * 0.62 * FONT / 72
