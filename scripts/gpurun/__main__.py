"""The commands of docs/gpu.md: python -m gpurun first|tests|bench|tune|sanitize [--out FOLDER]"""

from __future__ import annotations

import argparse
import signal
import sys
import types
from collections.abc import Sequence
from pathlib import Path

from gpurun import plans, rehearse
from gpurun.out import Out
from gpurun.run import run
from gpurun.steps import ROOT


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gpurun", description=__doc__)
    parser.add_argument("command", choices=[*plans.PLANS, *rehearse.COMMANDS])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu")
    parser.add_argument("--only", default="", metavar="NAMES", help="parts of steps' names")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _stop)
    rehearsal = rehearse.COMMANDS.get(options.command)
    try:
        if rehearsal:
            return rehearsal(Out(options.out))
        only = [word.strip() for word in options.only.split(",") if word.strip()]
        return run(options.command, Out(options.out), only)
    except KeyboardInterrupt:
        print(f"gpu-{options.command}: stopped", file=sys.stderr)
        return 130


def _stop(number: int, frame: types.FrameType | None) -> None:
    raise KeyboardInterrupt  # ends the steps, keeps what they wrote


if __name__ == "__main__":
    sys.exit(main())
