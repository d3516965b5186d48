"""Turns of servers and of the engine itself, interleaved and checked, for the suite `serve`.

As bench/measure.py has it, but that a turn is many requests. Some answers of every turn are
compared with those of the first candidate, afterwards.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from bench import peers
from bench.measure import Sampled
from bench.serve import Client, Ran, Requests, Server

SAMPLED = 4  # answers of a turn that are looked at
# What m3fast's server sets for itself.
SWITCH_INTERVAL = 5e-4


@dataclass(frozen=True)
class Turn:
    """What one candidate did in one round.

    Attributes:
        seconds: its samples for the row.
        answers: some, by the request's number.
        ran: what else there is to say of it.
    """

    seconds: list[float]
    answers: dict[int, peers.Encoded] = field(repr=False)
    ran: Ran

    def whole(self) -> Turn:
        """With the whole time as its one sample."""
        return replace(self, seconds=[self.ran.elapsed])

    def rate(self) -> Turn:
        """With the time per answer as its one sample."""
        return replace(self, seconds=[1 / self.ran.rate])

    @property
    def cpu(self) -> float:
        """CPU seconds of the server per request."""
        return self.ran.server / self.ran.requests

    @property
    def client(self) -> float:
        """CPU seconds of the client per request."""
        return self.ran.client / self.ran.requests


@dataclass
class Taken:
    """All turns of one candidate, and how it was wrong."""

    turns: list[Turn] = field(default_factory=list)
    wrong: str = ""

    def sampled(self) -> Sampled:
        return Sampled([] if self.wrong else [s for t in self.turns for s in t.seconds], self.wrong)

    def of(self, value: Callable[[Turn], float]) -> Sampled:
        """One sample per turn."""
        return Sampled([] if self.wrong else [value(turn) for turn in self.turns], self.wrong)


Candidate = Callable[[Requests, bool], Turn]  # bool: a short turn, to warm up


def take(
    candidates: Mapping[str, Candidate],
    inputs: Sequence[Requests],
    *,
    rounds: int,
    budget: float,
    judge: Callable[[str, Any, Any], str],
    least: int = 2,
    say: Callable[[str], None] = lambda line: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Taken]:
    """Run candidates side by side; the first is the truth, or of those right the next.

    Args:
        inputs: rotated round by round.
        budget: seconds per candidate, after which it sits out all rounds but the first `least`; no
            second or later round may bring it beyond three times as long.
        judge: (name, true encodings, encodings) of one request -> difference, or "".
    """
    found = {name: Taken() for name in candidates}
    used = dict.fromkeys(candidates, 0.0)
    truth: dict[tuple[int, int], peers.Encoded] = {}
    names = list(candidates)
    for name in names:
        try:
            candidates[name](inputs[0], True)
        except Exception as error:
            found[name].wrong = _words(error)
    for i in range(rounds):
        number = i % len(inputs)
        turn = i % len(names)
        ran: dict[str, Turn] = {}
        for name in names[turn:] + names[:turn]:
            enough = i >= least and used[name] > budget
            if found[name].wrong or enough or (i and used[name] * (i + 1) / i > 3 * budget):
                continue
            start = clock()
            try:
                ran[name] = candidates[name](inputs[number], False)
            except Exception as error:  # a peer that fails is a finding, not the end of the run
                found[name].wrong = _words(error)
                continue
            used[name] += clock() - start
        for name in (n for n in names if n in ran):
            for request, answer in ran[name].answers.items():
                known = truth.setdefault((number, request), answer)
                found[name].wrong = found[name].wrong or judge(name, known, answer)
            # Answers are megabytes, and have been looked at.
            found[name].turns.append(replace(ran[name], answers={}))
        last = (f"{n} {median(t.seconds):.3g} s" for n, t in ran.items())
        say(f"round {i + 1}/{rounds}: " + ", ".join(last))
    return found


def _words(error: Exception) -> str:
    line = "".join(str(error).strip().splitlines()[:1])
    return f"failed: {type(error).__name__}: {line[:120]}"


def kept(requests: Requests) -> list[int]:
    """Numbers of the requests whose answers are looked at."""
    count = len(requests.inputs)
    return sorted({i * count // SAMPLED for i in range(SAMPLED)})


def served(client: Client, server: Server, requests: Requests, **job: Any) -> Turn:
    """A job of the client's; samples are the latencies."""
    client.load(requests)
    ran = client.run(server, keep=kept(requests), **job)
    answers = {number: requests.answer(body) for number, body in ran.bodies.items()}
    return Turn(ran.seconds, answers, replace(ran, bodies={}))


class InProcess:
    """`Engine` and `AsyncEngine` in this process, timed as the client times a server.

    Attributes:
        engine: in the dtype that servers beside it have.
    """

    def __init__(self, path: Path, dtype: str) -> None:
        import uvloop

        from m3fast import AsyncEngine, Engine

        self.engine = Engine.from_pretrained(str(path), device="cpu", dtype=dtype)
        self._loop = uvloop.new_event_loop()
        self._async = AsyncEngine(self.engine)
        self._loop.run_until_complete(self._async.__aenter__())

    def close(self) -> None:
        self._loop.run_until_complete(self._async.close())
        self._loop.close()

    def one_by_one(self, requests: Requests, count: int) -> Turn:
        """Engine.encode, a request after the other."""
        wanted, inputs = _wanted(requests), requests.inputs
        seconds: list[float] = []
        keep: dict[int, Any] = dict.fromkeys(kept(requests))
        with _Timing() as timing:
            for i in range(count):
                number = i % len(inputs)
                start = time.perf_counter()
                found = self.engine.encode(inputs[number], show_progress=False, **wanted)
                seconds.append(time.perf_counter() - start)
                if number in keep:
                    keep[number] = found
        return _turn(requests, seconds, keep, timing)

    def offline(self, requests: Requests) -> Turn:
        """Engine.encode of all texts in one call; one sample."""
        texts, wanted = requests.texts(), _wanted(requests)
        with _Timing() as timing:
            found = self.engine.encode(texts, show_progress=False, **wanted)
        keep, start, wish = {}, 0, kept(requests)
        for number, its in enumerate(requests.inputs):
            size = 1 if isinstance(its, str) else len(its)
            if number in wish:
                keep[number] = found[start : start + size]
            start += size
        turn = _turn(requests, [timing.elapsed], keep, timing)
        return replace(turn, ran=replace(turn.ran, requests=len(requests.inputs)))

    def concurrent(
        self, requests: Requests, callers: int, count: int | None = None,
        seconds: float | None = None,
    ) -> Turn:  # fmt: skip
        """AsyncEngine.encode by so many callers, each with its next request once it has an answer.

        Samples are latencies.
        """
        wanted, inputs = _wanted(requests), requests.inputs
        latencies: list[float] = []
        keep: dict[int, Any] = dict.fromkeys(kept(requests))
        sent = 0
        within = 0

        async def call(end: float) -> None:
            nonlocal sent, within
            while sent != count and time.perf_counter() < end:
                number, sent = sent % len(inputs), sent + 1
                start = time.perf_counter()
                found = await self._async.encode(inputs[number], **wanted)
                now = time.perf_counter()
                latencies.append(now - start)
                within += now < end
                if number in keep:
                    keep[number] = found

        async def run() -> None:
            end = time.perf_counter() + seconds if seconds else float("inf")
            tasks: list[Awaitable[None]] = [call(end) for _ in range(callers)]
            await asyncio.gather(*tasks)

        interval = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_INTERVAL)
        try:
            with _Timing() as timing:
                self._loop.run_until_complete(run())
        finally:
            sys.setswitchinterval(interval)
        return _turn(requests, latencies, keep, timing, within / (seconds or timing.elapsed))


class _Timing:
    """Wall and CPU time of a block, without the garbage collector, as in the client."""

    elapsed = cpu = 0.0

    def __enter__(self) -> _Timing:
        gc.collect()
        gc.disable()
        self.cpu, self._start = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.elapsed = time.perf_counter() - self._start
        self.cpu = time.process_time() - self.cpu
        gc.enable()


def _wanted(requests: Requests) -> dict[str, bool]:
    return {name: name in requests.outputs for name in peers.KEYS}


def _turn(
    requests: Requests, seconds: list[float], keep: dict[int, Any], timing: _Timing,
    rate: float | None = None,
) -> Turn:  # fmt: skip
    rate = rate or len(seconds) / timing.elapsed
    ran = Ran(seconds, timing.elapsed, rate, 0.0, 0.0, timing.cpu, len(seconds), {})
    encoded = {n: _encoded(requests, found) for n, found in keep.items() if found is not None}
    return Turn(seconds, encoded, ran)


def _encoded(requests: Requests, found: Any) -> peers.Encoded:
    """m3fast's Embeddings as FlagEmbedding's dict."""
    result: peers.Encoded = {"dense_vecs": found.dense}
    if "sparse" in requests.outputs:
        rows = found.sparse.to_dicts()
        result["lexical_weights"] = [{str(k): v for k, v in row.items()} for row in rows]
    if "colbert" in requests.outputs:
        result["colbert_vecs"] = list(found.colbert)
    return result
