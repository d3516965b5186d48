"""What our pictures share: colours, a figure of its own, and files that appear whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

INK, MUTED, GRID, VIOLET = "#1f2430", "#6b7280", "#e5e7eb", "#9333ea"
MODES = {"dense": "#2563eb", "sparse": "#d97706", "colbert": "#059669"}


def new_figure(size: tuple[float, float], dpi: int, **kwargs: Any) -> Any:
    """A white matplotlib Figure of that size in inches, apart from pyplot and its backend."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=size, dpi=dpi, facecolor="white", **kwargs)
    FigureCanvasAgg(figure)
    return figure


def unframed(axes: Any, colour: str = MUTED) -> None:
    """Take the frame and the tick marks away; tick labels get the colour."""
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, colors=colour)


def literal(text: str) -> str:
    """Text as it stands: a dollar sign would start a formula."""
    return text.replace("$", r"\$")


def save_png(figure: Any, file: Path) -> None:
    """Write the figure; what stands there is replaced once the picture is whole."""
    partial = file.with_name(f".{file.name}.part")
    figure.savefig(partial, format="png")
    partial.replace(file)
