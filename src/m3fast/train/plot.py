"""A run's log as one picture: losses, learning rate and tokens/s against steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from m3fast.train.config import LOSSES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

INK, MUTED = "#1f2430", "#6b7280"
COLOURS = {
    "dense": "#2563eb",
    "sparse": "#d97706",
    "colbert": "#059669",
    "hybrid": "#1f2430",
    "cosine": "#9333ea",
    "kl": "#db2777",
}


def draw(rows: Sequence[dict[str, Any]], heading: str, file: Path) -> None:
    """Write the picture as PNG.

    Args:
        rows: of training.jsonl.
        heading: what was trained.
        file: where it goes; replaced only once the picture is whole.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # A Figure of its own, not pyplot: no global backend is chosen.
    figure: Any = Figure(figsize=(9, 8), dpi=110, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
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
        axes.grid(color="#e5e7eb")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, colors=MUTED)
    panels[-1].set_xlabel("step", color=INK)
    figure.suptitle(heading.replace("$", r"\$"), fontsize=10, color=INK)
    partial = file.with_name(f".{file.name}.part")
    figure.savefig(partial, format="png")
    partial.replace(file)
