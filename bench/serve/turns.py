"""Turns of servers and of the engine itself, interleaved and checked, for the suite `serve`.

As bench/core/measure.py has it, but that a turn is many requests. Some answers of every turn are
compared with those of the first candidate, afterwards.
"""

from __future__ import annotations

import base64
import os
import pickle
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from bench.core import child
from bench.core.measure import Sampled
from bench.core.paths import ROOT
from bench.peers.encodings import Encoded
from bench.serve.client import Client, Ran
from bench.serve.requests import Requests
from bench.serve.servers import Server

SAMPLED = 4  # answers of a turn that are looked at
STEADY = 0.75


@dataclass(frozen=True)
class Turn:
    """What one candidate did in one round.

    Attributes:
        seconds: its samples for the row.
        answers: some, by the request's number.
        ran: what else there is to say of it.
    """

    seconds: list[float]
    answers: dict[int, Encoded] = field(repr=False)
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


def disturbed(its: Taken, cores: int = 0) -> str:
    """How other work on the machine spoiled a reference's turns, or "".

    A team of threads of which one is interrupted spins until it is back: the engine alone would
    look many times slower than it is, and a server beside it that much better.

    Args:
        cores: that it keeps busy, spinning or not; 0 where it may be fewer.
    """
    if its.wrong or not its.turns:
        return ""
    busy = median(turn.ran.server / turn.ran.elapsed for turn in its.turns)
    if busy < STEADY * cores:
        return f"the machine was busy: it had {busy:.2g} of {cores} cores"
    turns = [median(turn.seconds) for turn in its.turns]
    ratio = median(turns) / min(turns)
    return f"the machine was busy: median {ratio:.2g}× the least" if ratio > 1 / STEADY else ""


TakeTurn = Callable[[Requests, bool], Turn]  # bool: a short turn, to warm up


def take(
    candidates: Mapping[str, TakeTurn],
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
    truth: dict[tuple[int, int], Encoded] = {}
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


class Apart:
    """`Engine` or `AsyncEngine` in a process of its own: threads of one would spoil the other.

    Turns are timed there, where texts and results are, as the client times a server.
    """

    def __init__(self, way: str, path: Path, dtype: str, threads: int) -> None:
        source = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
        environment = os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": str(threads)}
        arguments = ["bench.serve.child_engine", way, str(path), dtype, str(threads)]
        self._talk = child.Talk([sys.executable, "-P", "-m", *arguments], environment)
        self._loaded: Requests | None = None

    def one_by_one(self, requests: Requests, count: int) -> Turn:
        """So many calls, one after the other; samples are the latencies."""
        return self._turn(requests, "one_by_one", count=count)

    def offline(self, requests: Requests) -> Turn:
        """All texts in one call of Engine.encode; one sample."""
        return self._turn(requests, "offline")

    def concurrent(
        self, requests: Requests, callers: int, count: int | None = None,
        seconds: float | None = None,
    ) -> Turn:  # fmt: skip
        """AsyncEngine.encode by so many callers, each with its next request once it has an answer.

        Samples are latencies.
        """
        return self._turn(requests, "concurrent", callers=callers, count=count, seconds=seconds)

    def _turn(self, requests: Requests, do: str, **given: Any) -> Turn:
        job: dict[str, Any] = {"do": do, "given": given}
        with tempfile.NamedTemporaryFile() as file:
            if self._loaded is not requests:
                pickle.dump(requests, file)
                file.flush()
                job["load"] = file.name
            said = self._talk.ask(job)
        self._loaded = requests
        if "error" in said:
            raise RuntimeError(said["error"])
        return pickle.loads(base64.b64decode(said["turn"]))

    def close(self) -> None:
        self._talk.close()
