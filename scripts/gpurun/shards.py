"""Tests as steps: where one hangs, crashes or loses CUDA's context, the others still run."""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from gpurun.out import TESTS, Out
from gpurun.steps import LEAST, Result, Runner, Step

BROKEN = 77  # a process's exit where CUDA's context is lost: every further test would fail
ATTEMPTS = 6  # processes of one shard


@dataclass(frozen=True)
class Shard:
    """Every `parts`-th test of pytest's `arguments` from the `part`-th on.

    Attributes:
        limit: seconds in all; `each`: of one test.
        wrap: what runs Python, such as a sanitizer with its options.
        found: a sanitizer's exit where it found something.
    """

    name: str
    arguments: Sequence[str]
    limit: float
    each: float = 45.0
    part: int = 0
    parts: int = 1
    wrap: Sequence[str] = ()
    found: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    def split(self, parts: int) -> list[Shard]:
        """The same tests as so many shards."""
        if parts == 1:
            return [self]
        return [replace(self, name=f"{self.name} {i + 1}/{parts}", part=i, parts=parts)
                for i in range(parts)]  # fmt: skip


@dataclass
class Seen:
    """What a shard's file says: tests in the order of collection, and the outcome of each."""

    collected: list[str] = field(default_factory=list)
    outcomes: dict[str, str] = field(default_factory=dict)
    begun: str | None = None  # and not done

    @property
    def left(self) -> list[str]:
        return [test for test in self.collected if test not in self.outcomes]


def run(runner: Runner, shard: Shard) -> Seen:
    """Run a shard in as many processes as it needs, and record it as one step."""
    start = time.monotonic()
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "shard.jsonl"
        while len(results) < ATTEMPTS:
            limit = shard.limit - (time.monotonic() - start)
            step = Step(shard.name, _command(shard), limit, _environment(runner, shard, file))
            if results and min(limit, runner.left) < LEAST:
                break
            results.append(runner.run(step, keep=False))
            seen = _seen(file)
            if seen.begun:
                _interrupted(runner, file, seen.begun, results[-1])
            elif results[-1].code != BROKEN:
                break
        seen = _seen(file)
    last = results[-1]
    counts = Counter(seen.outcomes.values()) + Counter({"not run": len(seen.left)})
    words = ", ".join(f"{n} {outcome}" for outcome, n in sorted(counts.items()))
    code, why = last.code, last.why
    if code is not None and code == shard.found:
        why = "found something"
    elif not seen.collected:
        code = 1 if code == 0 else code
    elif seen.left:
        code, why = None, why or "not finished"
    elif shard.found is None:
        code, why = int(not set(counts) <= {"passed", "skipped"}), ""
    else:  # what a sanitizer says counts, not what the tests do
        code = 0
    output = words or last.output  # what went wrong is told of each test
    runner.record(Result(shard.name, code, time.monotonic() - start, output, why))
    return seen


def _command(shard: Shard) -> list[str]:
    pytest = ["-m", "pytest", "-q", "--no-header", "-p", "gpurun.plugin", "-p", "no:cacheprovider",
              "--no-summary"]  # fmt: skip - the plugin writes failures
    return [*shard.wrap, sys.executable, *pytest, *shard.arguments]


def _environment(runner: Runner, shard: Shard, file: Path) -> dict[str, str]:
    return {
        "OMP_NUM_THREADS": "1",
        **shard.environment,
        "M3FAST_OUT": str(runner.out.folder.resolve()),
        "M3FAST_SHARD": str(file),
        "M3FAST_PART": f"{shard.part}/{shard.parts}",
        "M3FAST_TEST_S": str(shard.each),
    }


def _interrupted(runner: Runner, file: Path, test: str, result: Result) -> None:
    """Write down the test in whose middle a process ended."""
    outcome = "hung" if result.code is None or "Timeout (" in result.output else "crashed"
    Out(file.parent).line(file.name, done=test, outcome=outcome)
    seconds, why = round(result.seconds, 1), f"{result.state}: {result.last[:200]}"
    runner.out.line(TESTS, test=test, outcome=outcome, seconds=seconds, why=why)
    runner.out.failure(f"{test}: {outcome} ({result.state})", result.output[-20_000:])


def _seen(file: Path) -> Seen:
    seen = Seen()
    for line in Out(file.parent).lines(file.name):
        if "collected" in line:
            seen.collected = line["collected"]
        elif "begun" in line:
            seen.begun = line["begun"]
        elif "done" in line:
            seen.outcomes[line["done"]], seen.begun = line["outcome"], None
    return seen


def complete(runner: Runner, seen: Iterable[Seen]) -> None:
    """Say of each file whose tests all have an outcome that it is complete."""
    collected: set[str] = set()
    left: set[str] = set()
    for its in seen:
        collected.update(test.partition("::")[0] for test in its.collected)
        left.update(test.partition("::")[0] for test in its.left)
    for file in sorted(collected - left):
        runner.out.line(TESTS, file=file, complete=True)
