"""What the tests of scripts/gpurun run: a card that was found, and steps."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOUND = {
    "device": "NVIDIA H100 80GB HBM3, 132 SMs, sm_90", "clocks": {}, "commit": "0123456789abcdef",
    "dirty": False, "tree": "feed", "versions": {"torch": "2.11.0"}, "python": "3.12.3",
}  # fmt: skip


def nothing(line: str) -> None:
    del line


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)
