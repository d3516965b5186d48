"""All figures as one picture: a panel per measure, per dataset a bar for each mode."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from m3fast.evaluate.measures import MEASURES

if TYPE_CHECKING:
    from pathlib import Path

    from m3fast.evaluate.run import Evaluation

INK, MUTED = "#1f2430", "#6b7280"
COLOURS = {
    "dense": "#2563eb",
    "sparse": "#d97706",
    "colbert": "#059669",
    "dense+sparse": "#9333ea",
    "all": "#1f2430",
}
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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = [(r.name, r.values) for r in found.results]
    if len(columns) > 1:
        columns.append(("mean", found.mean))
    wide = max(7.0, 2.0 + 0.85 * len(columns))
    # A Figure of its own, not pyplot: no global backend is chosen.
    figure: Any = Figure(
        figsize=(wide, 2.3 * len(MEASURES)), dpi=130, facecolor="white", layout="constrained"
    )
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(MEASURES), 1, sharex=True)
    width = 0.84 / len(found.modes)
    for axes, measure in zip(panels, MEASURES, strict=True):
        for i, mode in enumerate(found.modes):
            left = [x + (i - (len(found.modes) - 1) / 2) * width for x in range(len(columns))]
            heights = [100 * values[mode][measure] for _, values in columns]
            axes.bar(left, heights, width * 0.92, color=COLOURS[mode], label=title(mode))
        axes.set_ylabel(measure, color=INK)
        axes.set_ylim(0, 100)
        axes.grid(axis="y", color="#e5e7eb")
        axes.set_axisbelow(True)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, colors=MUTED)
    names = [name.replace("$", r"\$") for name, _ in columns]  # a dollar sign starts a formula
    long = max(map(len, names)) > 8
    turned: dict[str, Any] = {"rotation": 35, "ha": "right"} if long else {}
    panels[-1].set_xticks(range(len(columns)), names, color=INK, **turned)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    figure.suptitle(heading.replace("$", r"\$"), fontsize=10, color=INK)
    partial = file.with_name(f".{file.name}.part")
    figure.savefig(partial, format="png")
    partial.replace(file)
