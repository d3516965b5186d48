"""Arguments of `m3fast tune`."""

from __future__ import annotations

import argparse

BRIEF = "measure the GPU kernels' configs on this GPU"
EPILOG = """\
times every config of the GPU kernels at BGE-M3's sizes and writes the best to the table that the
kernels read, kernels/tuned/<device>.json in the installed package. Takes minutes: each config is
compiled. Configs that do not compile or do not fit the GPU are named and left out. With --seconds
the shapes that matter most are tried, in that order, and what time did not suffice for is named.

examples:
  m3fast tune
  m3fast tune --seconds 75
  m3fast tune --op attention --op maxsim --device cuda:1 --output nvidia-h200.json"""


def add(sub: argparse.ArgumentParser) -> None:
    """Add them all."""
    sub.add_argument(
        "--op", action="append", default=[], metavar="OP",
        help="attention, layernorm, gelu, maxsim or sparse; may be repeated (default: all)",
    )  # fmt: skip
    sub.add_argument("--device", default="cuda", help="cuda[:n] (default: %(default)s)")
    sub.add_argument("--output", metavar="FILE", help="table to write, or to add to")
    sub.add_argument("--seconds", type=float, metavar="N",
                     help="end after N, having tried what matters most first")  # fmt: skip
