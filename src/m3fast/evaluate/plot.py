"""The picture of an evaluation: a panel per measure, per dataset a bar for each mode."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from m3fast.evaluate.measures import MEASURES
from m3fast.plotting import GRID, INK, MODES, VIOLET, literal, new_figure, save_png, unframed

if TYPE_CHECKING:
    from pathlib import Path

    from m3fast.evaluate.run import Evaluation

COLOURS = MODES | {"dense+sparse": VIOLET, "all": INK}
TITLES = {"colbert": "multi-vector"}


def title(mode: str) -> str:
    """What tables and pictures call a mode."""
    return TITLES.get(mode, mode)


def draw(found: Evaluation, heading: str, file: Path) -> None:
    """Write the picture as PNG.

    Args:
        heading: what was measured on what.
        file: where it goes; replaced only once the picture is whole.
    """
    columns = [(r.name, r.values) for r in found.results]
    if len(columns) > 1:
        columns.append(("mean", found.mean))
    wide = max(7.0, 2.0 + 0.85 * len(columns))
    figure = new_figure((wide, 2.3 * len(MEASURES)), 130, layout="constrained")
    panels = figure.subplots(len(MEASURES), 1, sharex=True)
    width = 0.84 / len(found.modes)
    for axes, measure in zip(panels, MEASURES, strict=True):
        for i, mode in enumerate(found.modes):
            left = [x + (i - (len(found.modes) - 1) / 2) * width for x in range(len(columns))]
            heights = [100 * values[mode][measure] for _, values in columns]
            axes.bar(left, heights, width * 0.92, color=COLOURS[mode], label=title(mode))
        axes.set_ylabel(measure, color=INK)
        axes.set_ylim(0, 100)
        axes.grid(axis="y", color=GRID)
        axes.set_axisbelow(True)
        unframed(axes)
    names = [literal(name) for name, _ in columns]
    long = max(map(len, names)) > 8
    turned: dict[str, Any] = {"rotation": 35, "ha": "right"} if long else {}
    panels[-1].set_xticks(range(len(columns)), names, color=INK, **turned)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    figure.suptitle(literal(heading), fontsize=10, color=INK)
    save_png(figure, file)
