"""Arguments of `m3fast env`."""

from __future__ import annotations

import argparse

from m3fast.cli.arguments.shared import add_json

BRIEF = "show versions, devices and active kernels"
EPILOG = """\
prints versions, devices, the dtype that --dtype auto takes and why, whether the native extension is
there, and which path each operation takes.

Linear layers in int8 multiply bytes with bytes, however few the rows; weights are never widened to
floats. Where the processor sums such products in 16 bits (no AMX, no VNNI), a factor has 7 bits."""


def add(sub: argparse.ArgumentParser) -> None:
    """Add them all."""
    add_json(sub)
