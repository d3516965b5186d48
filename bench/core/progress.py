"""Progress of a long run: a line per test with its suite's count, time so far and time left."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

PACE = 5.0  # seconds between lines about rounds


def suite_of(file: Path) -> str:
    """`bench_gpu_sparse.py` and `bench_sparse.py` are one suite, sparse."""
    return file.stem.removeprefix("bench_").removeprefix("gpu_")


class Progress:
    """A pytest plugin that says a line before each test that measures, and why others do not."""

    def __init__(
        self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._say, self._clock = say, clock
        self._of: Counter[str] = Counter()  # tests of each suite
        self._begun: Counter[str] = Counter()
        self._took: dict[str, list[float]] = {}
        self._start = self._last = clock()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.expect([suite_of(i.path) for i in session.items if not _marked(i)])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._last = self._clock()
        file, _, name = nodeid.partition("::")
        self._now = (suite_of(Path(file)), name)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        suite, name = self._now
        if report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
            self._say(f"{suite}, {name}: {reason.removeprefix('Skipped: ')}")
        elif report.when == "call":
            self._took.setdefault(suite, []).append(self._clock() - self._last)

    def expect(self, suites: list[str]) -> None:
        """The tests to come, each by its suite."""
        self._of = Counter(suites)

    def begin(self) -> None:
        """The test announced last does measure."""
        suite, name = self._now
        left = self._left()
        self._begun[suite] += 1
        self._say(
            f"{suite} {self._begun[suite]}/{self._of[suite]}, "
            f"{_clock(self._clock() - self._start)} so far"
            + (f", about {_clock(left)} left" if left else "")
            + f": {name}"
        )

    def _left(self) -> float:
        """Seconds, as if tests to come took what those of their suite, else all, took so far."""
        every = [s for took in self._took.values() for s in took]
        if not every:
            return 0.0
        left = 0.0
        for suite, count in self._of.items():
            took = self._took.get(suite, every)
            left += (count - self._begun[suite]) * sum(took) / len(took)
        return left


def paced(
    say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
) -> Callable[[str], None]:
    """`say`, but silent within PACE seconds of its last line."""
    last = clock()

    def now_and_then(line: str) -> None:
        nonlocal last
        if clock() - last >= PACE:
            last = clock()
            say(line)

    return now_and_then


def _marked(item: pytest.Item) -> bool:
    return item.get_closest_marker("skip") is not None


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
