"""The picture of a training run: losses, learning rate and tokens/s against steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from m3fast.plotting import GRID, INK, MODES, VIOLET, literal, new_figure, save_png, unframed
from m3fast.train.config import LOSSES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

COLOURS = MODES | {"hybrid": INK, "cosine": VIOLET, "kl": "#db2777"}


def draw(rows: Sequence[dict[str, Any]], heading: str, file: Path) -> None:
    """Write the picture as PNG.

    Args:
        rows: of training.jsonl.
        heading: what was trained.
        file: where it goes; replaced only once the picture is whole.
    """
    figure = new_figure((9, 8), 110, layout="constrained")
    panels = figure.subplots(3, 1, sharex=True, height_ratios=(4, 1, 1))
    for name in LOSSES:
        # A batch of texts alone has no contrastive loss: its steps are left out, not zero.
        points = [(row["step"], row[name]) for row in rows if name in row]
        if points:
            style = "--" if name.startswith("distill") else "-"
            colour = COLOURS[name.rpartition("_")[2]]
            marker = "." if len(points) < 3 else None
            panels[0].plot(
                *zip(*points, strict=True), style, color=colour, label=name, marker=marker
            )
    panels[0].set_ylabel("loss", color=INK)
    if panels[0].lines:
        panels[0].legend(frameon=False, ncols=3, fontsize=8)
    steps = [row["step"] for row in rows]
    for axes, key, label in (
        (panels[1], "lr", "learning rate"),
        (panels[2], "tokens_per_s", "tokens/s"),
    ):
        axes.plot(steps, [row[key] for row in rows], color=INK)
        axes.set_ylabel(label, color=INK)
    for axes in panels:
        axes.set_ylim(bottom=0)
        axes.grid(color=GRID)
        unframed(axes)
    panels[-1].set_xlabel("step", color=INK)
    figure.suptitle(literal(heading), fontsize=10, color=INK)
    save_png(figure, file)
