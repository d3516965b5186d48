"""`m3fast quantize`: writes a checkpoint in int8, or one in int8 in floats."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from m3fast.checkpoint.quantize import dequantize, quantize

if TYPE_CHECKING:
    import argparse


def run(args: argparse.Namespace) -> int:
    """Write it, and say how large it is.

    Raises:
        M3FastError: the model cannot be loaded, or bad arguments.
        OSError: a file cannot be read or written.
    """
    if args.to == "int8":
        made = quantize(args.model, args.output)
    else:
        made = dequantize(args.model, args.output, getattr(torch, args.to))
    print(
        f"{made.folder}: {_megabytes(made.after)} of weights, {_megabytes(made.before)} in "
        f"{args.model}, {made.seconds:.1f} s"
    )
    return 0


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
