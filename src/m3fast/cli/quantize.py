"""`m3fast quantize`: writes a checkpoint in int8."""

from __future__ import annotations

from typing import TYPE_CHECKING

from m3fast.checkpoint.quantize import quantize

if TYPE_CHECKING:
    import argparse


def run(args: argparse.Namespace) -> int:
    """Write it, and say how large it is.

    Raises:
        M3FastError: the model cannot be loaded, or bad arguments.
        OSError: a file cannot be read or written.
    """
    made = quantize(args.model, args.output)
    print(
        f"{made.folder}: {_megabytes(made.after)} of weights, {_megabytes(made.before)} in "
        f"{args.model}, {made.seconds:.1f} s"
    )
    return 0


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
