"""Arguments of `m3fast env`."""

from __future__ import annotations

import argparse

from m3fast.cli.arguments.shared import add_json

BRIEF = "show versions, devices and active kernels"
EPILOG = """\
prints versions, devices, the dtype that --dtype auto takes and why, whether the native extension is
there, and which path each operation takes."""


def add(sub: argparse.ArgumentParser) -> None:
    """Add them all."""
    add_json(sub)
