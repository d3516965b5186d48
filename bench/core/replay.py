"""Hands a row's samples to pytest-benchmark, where it is installed, so that its options work.

Its own fixture would take all rounds of one candidate, then all of the next. Here the rounds are
interleaved first (bench/core/measure.py), and `pedantic` then reads a clock that replays them.
docs/adr/0010 says what each of the two reports.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from bench.core.rows import TIMED

# These keep or compare times, and without --benchmark there are none.
NEEDS = ("json", "save", "autosave", "compare", "compare_fail", "histogram")
ABOUT = (
    "suite", "dtype", "shape", "unit", "tokens", "padding", "note", "status", "ratio", "ratios",
    "share", "cosine", "aim", "met", "commit", "dirty", "device", "threads", "scale",
)  # fmt: skip


def installed(config: pytest.Config) -> bool:
    """Whether pytest-benchmark takes part in this session."""
    return hasattr(config.option, "benchmark_json")


def disabled(config: pytest.Config) -> bool:
    """Whether its user wants each row once, without times."""
    option = config.option
    return installed(config) and option.benchmark_disable and not option.benchmark_enable


def unmet(config: pytest.Config) -> list[str]:
    """Options of it that were given, and that mean nothing without times."""
    given = [name for name in NEEDS if getattr(config.option, f"benchmark_{name}", None)]
    return [f"--benchmark-{name.replace('_', '-')}" for name in given]


class Replay:
    """A pytest plugin, and what a `Bench` gives its rows' samples to."""

    def __init__(self, config: pytest.Config, about: Mapping[str, Any]) -> None:
        self._config, self._about = config, dict(about)

    def __call__(
        self, group: list[dict[str, Any]], samples: Mapping[str, Sequence[float]]
    ) -> None:
        """One entry per candidate that has times; the others are named in `extra_info`."""
        session = self._config.pluginmanager.getplugin("pytest-benchmark")
        if session is None or session.disabled or group[0]["unit"] not in TIMED:
            return
        left_out = {r["candidate"]: f"{r['status']}: {r['reason']}" for r in group if "reason" in r}
        for record in group:
            if "p50" in record:
                extra = {key: record[key] for key in ABOUT if key in record}
                extra |= {"left_out": left_out} if left_out else {}
                _enter(session, record, samples[record["candidate"]], extra)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(
        self, items: list[pytest.Item]
    ) -> Generator[None, None, None]:
        """`--benchmark-only` and `--benchmark-skip` look for its fixture: ours counts as one."""
        rows = [its for item in items if "bench" in (its := getattr(item, "fixturenames", ()))]
        for names in rows:
            names.append("benchmark")
        try:
            return (yield)
        finally:
            for names in rows:
                names.remove("benchmark")

    @pytest.hookimpl(optionalhook=True)
    def pytest_benchmark_update_machine_info(self, machine_info: dict[str, Any]) -> None:
        machine_info["m3fast"] = self._about


def _enter(
    session: Any, record: Mapping[str, Any], samples: Sequence[float], extra: dict[str, Any]
) -> None:
    """One candidate of one row, as its fixture enters a test."""
    from pytest_benchmark.fixture import BenchmarkFixture
    from pytest_benchmark.utils import NameWrapper

    row, candidate = record["row"], record["candidate"]
    name = f"{row}: {candidate}"
    node = SimpleNamespace(
        name=name,
        nodeid=f"{record['test']}[{name}]",
        callspec=SimpleNamespace(id=name, params={"row": row, "candidate": candidate}),
    )
    # Read before and after each round. From zero each time: a sum would lose digits.
    instants = (instant for sample in samples for instant in (0.0, sample))

    def replayed() -> float:
        return next(instants)

    options = session.options | {"timer": NameWrapper(replayed), "cprofile": False}
    fixture = BenchmarkFixture(
        node, add_stats=session.benchmarks.append, logger=session.logger, warner=None,
        disabled=False, group=row, **options,
    )  # fmt: skip
    fixture.extra_info |= extra
    fixture.pedantic(lambda: None, rounds=len(samples))
