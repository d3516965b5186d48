"""`m3fast train`: fine-tunes a model by the M3-Embedding paper's recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from m3fast.cli.output_files import NEEDED, can_plot, check_plot
from m3fast.errors import InputError
from m3fast.train import read_config, train
from m3fast.train.config import LOSSES
from m3fast.train.plot import draw
from m3fast.train.record import LOG, read_log

if TYPE_CHECKING:
    import argparse
    from pathlib import Path


def run(args: argparse.Namespace) -> int:
    """Train, and say what, how far and where.

    Raises:
        M3FastError: a bad config, bad data, or a model that cannot be loaded.
        OSError: a file cannot be read or written.
    """
    check_plot(args.plot)
    config = read_config(args.config)
    output = train(config, show_progress=args.progress, report=_say)
    rows = read_log(output / LOG)
    if not rows:
        raise InputError(f"{output / LOG}: expected the log of the run, found none")
    last = rows[-1]
    rate = last["tokens"] / max(last["seconds"], 0.01)
    _say(f"{last['tokens']:,} tokens in {last['seconds']:,.0f} s: {rate:,.0f} tokens/s")
    _say("losses: " + ", ".join(f"{name} {last[name]:.4f}" for name in LOSSES if name in last))
    plot: Path = args.plot or output / "training.png"
    if drawn := can_plot():
        draw(rows, f"{config.model}, {config.steps:,} steps, to {output.name}", plot)
    _say(f"plot: {plot if drawn else NEEDED}")
    _say(f"model: {output}")
    return 0


def _say(line: str) -> None:
    print(line, flush=True)  # seen at once where stdout is a file: a run takes hours
