"""The measuring core: interleaved rounds in one process, results checked before a time counts.

    round i:   A(input i)  B(input i)  C(input i)      the next round starts with B, then C, …
    ratio      median over rounds of (seconds of the peer / seconds of m3fast) in the same round

A machine that slows down for a minute slows every candidate of those rounds, so ratios hold where
seconds do not. docs/adr/0010 says why this is not pytest-benchmark.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

Candidate = Callable[[Any], Any]
Maker = Callable[[], Candidate]
Watch = Callable[[], Callable[[], float]]
OURS = "m3fast"
P99_SAMPLES = 200  # fewer leave less than two of them above the 99th percentile
KEPT_SAMPLES = 1000  # of more, records hold so many quantiles


class Absent(Exception):
    """A peer or a machine feature that is not here; the message is the reason to print."""


@dataclass
class Sampled:
    """What one candidate did.

    Attributes:
        seconds: one sample per round it took part in, in order; empty if it was wrong or failed.
        wrong: how its result differs or why it stopped, empty where it was right.
        cosine: of its results with fp32's, where they are of eight bits.
    """

    seconds: list[float] = field(default_factory=list)
    wrong: str = ""
    cosine: dict[str, float] | None = None


def interleave(
    candidates: Mapping[str, Candidate],
    inputs: Sequence[Any],
    *,
    rounds: int,
    budget: float = 60.0,
    least: int = 3,
    hard: float = math.inf,
    warm: Any = None,
    judge: Callable[[str, Any, Any], str] = lambda name, truth, result: "",
    judged: int = 1,
    say: Callable[[str], None] = lambda line: None,
    clock: Callable[[], float] = time.perf_counter,
    watch: Watch | None = None,
) -> dict[str, Sampled]:
    """Time candidates side by side.

    Args:
        candidates: by name; the first that runs is the truth that all others must agree with.
        inputs: rotated round by round, so that no candidate lives off its caches.
        rounds: samples per candidate.
        budget: seconds per candidate, after which it sits out all rounds but the first `least`.
        hard: seconds per candidate that a second and later round may not bring it beyond.
        warm: an input for one untimed call of each; None for the first of `inputs`.
        judge: (name, truth's result, result) of the first round -> difference, or "".
        judged: rounds that are judged, where one says too little; those that the truth sat out
            are not.
        say: takes a line of progress per round.
        watch: starts a sample; what it returns ends it and says its seconds. Wall time if None.

    Returns:
        Samples by name. A peer that raises or is wrong has the reason and no samples.
    """
    watch = watch or partial(wall, clock)
    found = {name: Sampled() for name in candidates}
    names = list(candidates)
    for name, candidate in candidates.items():
        _, found[name].wrong = _call(candidate, inputs[0] if warm is None else warm)
    results: dict[str, Any] = {}  # of one round
    right: list[str] = []
    for i in range(rounds):
        turn = i % len(names)
        for name in names[turn:] + names[:turn]:
            its = found[name]
            if its.wrong or _spent(its.seconds, i >= least, budget, hard):
                continue
            stop = watch()
            result, its.wrong = _call(candidates[name], inputs[i % len(inputs)])
            its.seconds.append(stop())
            if i < judged and not its.wrong:
                results[name] = result
        if i == 0:
            right = [name for name in names if name in results]
        if results and right[0] in results:
            for name in [name for name in names if name in results]:
                found[name].wrong = judge(name, results[right[0]], results[name])
        results.clear()
        last = (f"{n} {s.seconds[-1]:.3g} s" for n, s in found.items() if s.seconds)
        say(f"round {i + 1}/{rounds}: " + ", ".join(last))
    for its in found.values():
        if its.wrong:
            its.seconds = []
    return found


def _spent(seconds: Sequence[float], enough: bool, budget: float, hard: float) -> bool:
    used = sum(seconds)
    return used > 0 and ((enough and used > budget) or used + seconds[-1] > hard)


def wall(clock: Callable[[], float] = time.perf_counter) -> Callable[[], float]:
    """A `Watch` of wall time."""
    start = clock()
    return lambda: clock() - start


def _call(candidate: Candidate, value: Any) -> tuple[Any, str]:
    try:
        return candidate(value), ""
    except Exception as error:  # a peer that fails is a finding, not the end of the run
        line = str(error).strip().splitlines()[:1]
        return None, f"failed: {type(error).__name__}: {''.join(line)[:120]}"


def ratio(peer: Sequence[float], ours: Sequence[float]) -> float | None:
    """Median over shared rounds of peer / ours; above 1 where m3fast is faster."""
    pairs = [p / o for p, o in zip(peer, ours, strict=False)]
    return median(pairs) if pairs else None


def spread(peer: Sequence[float], ours: Sequence[float]) -> tuple[float, float] | None:
    """20th and 80th percentile over shared rounds of peer / ours."""
    pairs = [p / o for p, o in zip(peer, ours, strict=False)]
    return (_quantile(pairs, 0.2), _quantile(pairs, 0.8)) if pairs else None


def quantiles(samples: Sequence[float]) -> dict[str, float]:
    """p20, p50, p80, and p99 where there are samples enough for one."""
    wanted = (0.2, 0.5, 0.8) + ((0.99,) if len(samples) >= P99_SAMPLES else ())
    return {f"p{round(100 * q)}": _quantile(samples, q) for q in wanted} if samples else {}


def _quantile(samples: Sequence[float], q: float) -> float:
    """Linear between the two nearest order statistics."""
    ordered = sorted(samples)
    at = q * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def ordered(samples: Sequence[float]) -> list[float]:
    """In order; of many, quantiles from the least to the most."""
    found = sorted(samples)
    if len(found) <= KEPT_SAMPLES:
        return found
    return [_quantile(found, i / (KEPT_SAMPLES - 1)) for i in range(KEPT_SAMPLES)]


def timed(candidate: Candidate, value: Any) -> float:
    """Seconds of one call."""
    stop = wall()
    candidate(value)
    return stop()


def fastest(candidates: Mapping[str, Candidate], value: Any, warm: Any) -> str:
    """Name of the quickest in one timed call each, after an untimed one: a peer's best setting."""
    seconds: dict[str, float] = {}
    for name, candidate in candidates.items():
        candidate(warm)
        seconds[name] = timed(candidate, value)
    return min(seconds, key=seconds.__getitem__)
