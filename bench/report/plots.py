"""Plots of a device's rows for the README, one SVG per kind, the same bytes for the same records.

    length    throughput against text length, and the limit; rows of the scaling suite by length
    latency   share of calls done by a time; rows of the latency suite that kept samples
    batch     time per text against texts per call; rows that name their batch
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from bench.core.measure import OURS
from bench.report.names import shown
from bench.report.series import Group, Lines, find_batch, find_latency, find_length

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = (7.2, 3.6)  # inches, of 72 points
TITLE = 44  # characters of a line above one of two panels
# Read on white and on near-black alike: at least 3:1 on both for lines, 4:1 for text.
INK, FAINT = "#7b7b7b", "#7b7b7b40"
COLOURS = ("#e4572e", "#2f86d6", "#2a9d5c", "#a66bd6", "#b8860b", "#d6569c", "#3a9ea5", "#8c7a6b")
NAMES = (
    OURS, "FlagEmbedding", "packed, SDPA, torch.compile", "ONNX Runtime", "OpenVINO",
    "sentence-transformers",
)  # fmt: skip
STYLE = {
    "svg.hashsalt": "m3fast",
    "svg.fonttype": "none",
    "font.family": ["Inter", "Helvetica Neue", "Arial", "DejaVu Sans", "sans-serif"],
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.8,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "savefig.transparent": True,
}



def names(rows: list[Group], stem: str) -> dict[str, str]:
    """File names of the plots that these rows have data for -> what each shows."""
    return {f"{stem}-{kind}.svg": ALT[kind] for kind, find in FIND.items() if find(rows)}


def draw(rows: list[Group], stem: str, folder: Path) -> list[Path]:
    """Draw them; the files that changed. Others of this device are removed."""
    wanted = names(rows, stem)
    for kind in FIND:  # not what begins with the stem: another card's name may
        if (name := f"{stem}-{kind}.svg") not in wanted:
            (folder / name).unlink(missing_ok=True)
    changed = []
    for kind, find in FIND.items():
        if data := find(rows):
            file = folder / f"{stem}-{kind}.svg"
            before = file.read_bytes() if file.exists() else b""
            folder.mkdir(parents=True, exist_ok=True)
            _save(DRAW[kind], data, file)
            if file.read_bytes() != before:
                changed.append(file)
    return changed


def _save(drawn: Callable[[Any, Any], None], data: Any, file: Path) -> None:
    import logging

    import matplotlib
    from matplotlib.figure import Figure

    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # not every font is here
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        drawn(figure, data)
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})


def _draw_length(figure: Any, found: dict[str, Lines]) -> None:
    for axes, (dtype, lines) in zip(_panels(figure, found), found.items(), strict=True):
        _lines(axes, lines, dtype if len(found) > 1 else "")
        axes.set_xlabel("tokens per text")
        axes.set_ylabel("tokens / s")
        axes.set_ylim(bottom=0)
    _legend(figure)


def _draw_batch(figure: Any, found: dict[str, Lines]) -> None:
    for axes, (name, lines) in zip(_panels(figure, found), found.items(), strict=True):
        _lines(axes, lines, name)
        axes.set_yscale("log")
        _plain_ticks(axes, "y")
        axes.set_xlabel("texts per call")
        axes.set_ylabel("ms per text")
    _legend(figure)


def _draw_latency(figure: Any, found: list[Group]) -> None:
    if len(found) > 2:
        figure.set_size_inches(SIZE[0], 1.6 * SIZE[1])
    for axes, row in zip(_panels(figure, found), found, strict=True):
        for record in sorted(row, key=lambda r: r["candidate"] != OURS):
            times = [1e3 * s for s in record["sorted"]]
            shares = [100 * (n + 1) / len(times) for n in range(len(times))]
            _line(axes, times, shares, record["candidate"], drawstyle="steps-post")
        every = [s for record in row for s in record["sorted"]]
        if max(every) > 3 * min(every):  # else no power of ten is near
            axes.set_xscale("log")
        _plain_ticks(axes)
        axes.set_title("\n".join(wrap(row[0]["row"], TITLE)), loc="left")
        axes.set_xlabel("ms, text to numpy")
        axes.set_ylabel("% of calls done")
        axes.axhline(50, color=FAINT, linewidth=0.8, zorder=0)
        axes.axhline(99, color=FAINT, linewidth=0.8, zorder=0)
    _legend(figure)


def _panels(figure: Any, found: Any) -> list[Axes]:
    columns = min(len(found), 2)
    panels = figure.subplots(-(-len(found) // columns), columns, squeeze=False).ravel()
    for spare in panels[len(found) :]:
        spare.remove()
    return list(panels[: len(found)])


def _lines(axes: Axes, lines: Lines, title: str) -> None:
    order = sorted(lines, key=lambda name: (name != OURS, name == "limit", name))
    for name in order:
        x, y = zip(*sorted(lines[name]), strict=True)
        if name == "limit":
            axes.plot(x, y, color=INK, linestyle=(0, (4, 2)), linewidth=1.2, label="limit")
        else:
            _line(axes, x, y, name, marker="o", markersize=3.5)
    axes.set_xscale("log", base=2)
    ticks = sorted({x for line in lines.values() for x, _ in line})
    axes.set_xticks(ticks, [f"{x:,}" for x in ticks])
    axes.minorticks_off()
    _plain_ticks(axes, "y")
    axes.grid(axis="y")
    axes.set_title(title, loc="left")


def _legend(figure: Any) -> None:
    """One for all panels, below them."""
    shown = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        shown |= {name: line for name, line in zip(labels, handles, strict=True)}
    figure.legend(shown.values(), shown, loc="outside lower center", ncols=3, labelcolor=INK)


def _line(axes: Axes, x: Any, y: Any, name: str, **how: Any) -> None:
    width, front = (2.2, 3) if name == OURS else (1.3, 2)
    # A peer has one colour in every plot; others by the sum of their letters.
    known = NAMES.index(name) if name in NAMES else sum(name.encode())
    colour = COLOURS[known % len(COLOURS)]
    axes.plot(x, y, label=shown(name), color=colour, linewidth=width, zorder=front, **how)


def _plain_ticks(axes: Axes, which: str = "x") -> None:
    """12,000 and 0.5, not powers of ten."""
    from matplotlib.ticker import FuncFormatter

    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(FuncFormatter(lambda value, _: _plain(value)))
    axis.set_minor_formatter(FuncFormatter(lambda value, _: _few(value)))


def _plain(value: float) -> str:
    return f"{value:,.6g}" if value < 1e5 else f"{value:,.0f}"


def _few(value: float) -> str:
    """Labels of 2 and 5 between the powers of ten."""
    return _plain(value) if f"{value:.0e}"[0] in "25" else ""


ALT = {
    "length": "Throughput against text length, and the limit of this machine",
    "latency": "Distribution of latencies",
    "batch": "Time per text against texts per call",
}
FIND: dict[str, Callable[[list[Group]], Any]] = {
    "length": find_length,
    "latency": find_latency,
    "batch": find_batch,
}
DRAW: dict[str, Callable[[Any, Any], None]] = {
    "length": _draw_length,
    "latency": _draw_latency,
    "batch": _draw_batch,
}
