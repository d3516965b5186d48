"""A Bench for tests, records as it makes them, and `pytest bench/` in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.core import harness

ROOT = Path(__file__).parents[2]
# Plugins of other packages take seconds to import, and benchmarks use none of them. On a busy
# machine OpenMP's threads spin for one another: more than half of a smoke round's CPU time.
PLAIN = {
    "PYTHONSAFEPATH": "1",
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}


class Kept:
    """A Bench that keeps its records."""

    def __init__(self, scale: str = "default") -> None:
        self.records: list[dict[str, Any]] = []
        common = {"run": "2026-01-01T00:00:00+00:00", "commit": "c" * 40, "dirty": False,
                  "device": "A CPU, 2 cores, AVX2", "threads": 2, "versions": {}}  # fmt: skip
        self.bench = harness.Bench(
            harness.SCALES[scale], 2, common, lambda line: None, self.records.extend
        )


def made_up(run: str, **more: Any) -> dict[str, Any]:
    base = {"row": "r", "run": run, "candidate": "m3fast", "status": "ok", "shape": "s",
            "unit": "s", "device": "A CPU", "threads": 2, "commit": "c" * 40, "dirty": False,
            "versions": {"torch": "2"}}  # fmt: skip
    return base | more


def pytest_of(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`pytest -q` with these arguments, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=ROOT, env=os.environ | PLAIN | environment, capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip
