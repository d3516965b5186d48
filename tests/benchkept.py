"""A Bench for tests, and records as it makes them."""

from __future__ import annotations

from typing import Any

import benchpackage  # noqa: F401 - makes `bench` importable
from bench import harness


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
