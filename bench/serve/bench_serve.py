"""The HTTP server beside peers behind theirs, and what it costs beyond the engine.

Every server and the client are processes of their own, on the same cores. Rows in bf16 have no
peers, which compute in fp32 on a CPU: they show what HTTP takes of the faster engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import pytest

from bench.core import record
from bench.core.harness import OURS, Bench, Row, millis, share, tail
from bench.core.measure import Sampled
from bench.core.progress import paced
from bench.core.rows import Aim
from bench.core.workloads import TINY, mix, padding_ratio, texts
from bench.cpu.candidates import NAMES, NO_BF16, TOLERANCE
from bench.peers import encoders, infinity
from bench.serve.servers import (
    FLAG,
    INFINITY,
    SENTENCE,
    STAND_IN,
    TOGETHER,
    Client,
    Requests,
    Server,
    arrivals,
    start,
)
from bench.serve.turns import Apart, Candidate, Taken, Turn, disturbed, served, take

ENGINE, ASYNC = "Engine.encode in process", "AsyncEngine in process"
QUERY = 20  # tokens
CLIENTS = 64
PASSAGES = 32  # per request
LANE_CLIENTS = 16  # with bulk beside single queries
SHORT = "short queries (5 to 40 tokens)"
LOAD = 0.7  # of the capacity just measured
LANE_RATE = 40.0  # queries per second beside bulk
SLOW = (FLAG, SENTENCE, INFINITY)  # ten seconds each to start
DENSE = ("dense",)


class Stage:
    """The servers that run, of one checkpoint at a time, the engines beside them, the clients."""

    def __init__(self) -> None:
        self._running: dict[tuple[str, str], Server] = {}
        self._absent: dict[str, str] = {}
        self._engines: dict[tuple[str, str], Apart] = {}
        self._clients: list[Client] = []
        self._path: Path | None = None

    def client(self, number: int = 0) -> Client:
        while len(self._clients) <= number:
            self._clients.append(Client())
        return self._clients[number]

    def servers(
        self, bench: Bench, path: Path, dtype: str
    ) -> tuple[dict[str, Server], dict[str, str]]:
        """By name those that can be, and why others cannot."""
        self._of(path)
        theirs = () if dtype == "bf16" else bench.pick(SLOW, (STAND_IN,))
        new = [
            name
            for name in (*theirs, OURS)
            if (name, dtype) not in self._running and name not in self._absent
        ]
        if new:
            bench.say(f"starting {', '.join(new)}")
            request = Requests(["a text"]).raw()[0]
            found, absent = start(new, path, bench.threads, NAMES[dtype], request)
            self._running |= {(name, dtype): server for name, server in found.items()}
            self._absent |= absent
        running = {name: its for (name, of), its in self._running.items() if of == dtype}
        if bench.scale.smoke:
            return running, dict.fromkeys(SLOW, "takes ten seconds to start")
        return running, {} if dtype == "bf16" else dict(self._absent)

    def engine(self, bench: Bench, path: Path, dtype: str, way: str = "Engine") -> Apart:
        """Engine or AsyncEngine without a server."""
        self._of(path)
        if (way, dtype) not in self._engines:
            self._engines[way, dtype] = Apart(way, path, NAMES[dtype], bench.threads)
        return self._engines[way, dtype]

    def _of(self, path: Path) -> None:
        if path != self._path:
            self._end()
            self._path = path

    def _end(self) -> None:
        for each in (*self._running.values(), *self._engines.values()):
            each.close()
        self._running, self._engines, self._absent = {}, {}, {}

    def close(self) -> None:
        self._end()
        for client in self._clients:
            client.close()


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    its = Stage()
    yield its
    its.close()


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_bulk(bench: Bench, stage: Stage, dtype: str) -> None:
    """64 clients with passages, from the first request to the last answer."""
    _one_bf16_toy(bench, dtype)
    path = _small(bench)
    clients = bench.pick(CLIENTS, 4)
    inputs = _passages(bench.pick(PASSAGES, 3), clients, bench.pick(2, 1))
    name = f"bulk: {CLIENTS} clients, {PASSAGES} passages a request, {dtype}"
    row = _row(bench, path, name, dtype, *_sizes(inputs), unit="tokens/s")
    servers, absent = _begin(bench, stage, row, path, dtype)
    engine, client = stage.engine(bench, path, dtype), stage.client()
    concurrent = stage.engine(bench, path, dtype, "AsyncEngine").concurrent

    def count(short: bool) -> int:
        return clients // 4 if short else clients

    def http(_: str, server: Server, its: Requests, short: bool) -> Turn:
        return served(client, server, its, connections=clients, count=count(short)).whole()

    candidates = _over(servers, http) | {
        ENGINE: lambda its, short: engine.offline(its),
        ASYNC: lambda its, short: concurrent(its, clients, count(short)).whole(),
    }
    found = _take(bench, row, candidates, inputs, rounds=7, budget=9.0)
    note = _note(servers, found, "Engine.encode has all texts in one call")
    _add(bench, replace(row, note=note), found, absent, {ENGINE: share(0.9)}, bench.threads)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_short(bench: Bench, stage: Stage, dtype: str) -> None:
    """Short queries: as many as a server can, then some at instants that do not depend on it."""
    path = bench.model or TINY
    inputs = [
        Requests(texts(mix("chat", bench.pick(11_000, 400), seed), seed)) for seed in range(2)
    ]
    sizes = _sizes(inputs)
    name = f"{SHORT}, {CLIENTS} clients, {dtype}"
    row = _row(bench, path, name, dtype, *sizes, unit="requests/s")
    servers, absent = _begin(bench, stage, row, path, dtype)
    client = stage.client()
    concurrent = stage.engine(bench, path, dtype, "AsyncEngine").concurrent
    clients = bench.pick(CLIENTS, 4)
    seconds = {"smoke": 0.2, "quick": 1.0}.get(bench.scale.name, 2.0)
    judge = encoders.differ(TOLERANCE[dtype], DENSE)
    loaded: dict[str, Taken] = {name: Taken() for name in servers}

    def http(name: str, server: Server, its: Requests, short: bool) -> Turn:
        time = seconds / 4 if short else seconds
        # On a busy machine a smoke test's time may be over before any answer: no rate at all.
        much = {"count": 10 if short else 40} if bench.scale.smoke else {"seconds": time}
        turn = served(client, server, its, connections=clients, **much).rate()
        if not short:
            # Right after: the capacity of a minute ago may be another machine's.
            rate = LOAD * turn.ran.rate
            times = arrivals(rate, 2 * seconds, seed=len(loaded[name].turns))
            its_turn = served(client, server, its, run="open", connections=clients, times=times)
            loaded[name].turns.append(its_turn)
            for number, answer in its_turn.answers.items():
                known = turn.answers.get(number, answer)
                loaded[name].wrong = loaded[name].wrong or judge(name, known, answer)
        return turn

    candidates = _over(servers, http)
    candidates[ASYNC] = lambda its, short: concurrent(its, clients, seconds=seconds).rate()
    rounds = 1 if bench.scale.name == "quick" else 2
    found = _take(bench, row, candidates, inputs, rounds=rounds, budget=8 * seconds)
    note = _note(servers, found)
    _add(bench, replace(row, note=note), found, absent)
    cpu = f"CPU of the server per request, {SHORT}, {CLIENTS} clients, {dtype}"
    note = "of its process; with AsyncEngine, the 64 callers are in that"
    row = replace(_row(bench, path, cpu, dtype, *sizes), note=note)
    bench.add(row, {n: t.of(lambda turn: turn.cpu) for n, t in found.items()}, absent, {})

    for name, its in loaded.items():
        its.wrong = its.wrong or found[name].wrong
    rates = ", ".join(
        f"{name} {LOAD * median(turn.ran.rate for turn in found[name].turns):,.0f}/s"
        for name, its in loaded.items()
        if not its.wrong
    )
    late = max((turn.ran.late for its in loaded.values() for turn in its.turns), default=0.0)
    note = (
        f"Poisson arrivals, each server at {LOAD:.0%} of its own rate: {rates}; latencies from the "
        f"intended instant, within {1e3 * late:,.1f} ms of which 99 % were sent"
    )
    row = _row(bench, path, f"{SHORT} at {LOAD:.0%} of capacity, {dtype}", dtype, *sizes)
    _add(bench, replace(row, note=note), loaded, absent, {OURS: tail(4)})


def test_lane(bench: Bench, stage: Stage) -> None:
    """Single queries while bulk keeps the server busy."""
    path, dtype = _small(bench), "fp32"
    clients = bench.pick(LANE_CLIENTS, 4)
    bulk = _passages(bench.pick(PASSAGES, 3), 4 * clients, 1)[0]
    inputs = [Requests(texts([QUERY] * 64, 0))]
    name = f"one query of {QUERY} tokens beside bulk of {LANE_CLIENTS} clients, {dtype}"
    row = _row(bench, path, name, dtype, f"bulk: {_sizes([bulk])[0]}")
    servers, absent = _begin(bench, stage, row, path, dtype)
    first, second = stage.client(), stage.client(1)
    seconds = {"smoke": 0.3, "quick": 2.0}.get(bench.scale.name, 6.0)
    done: dict[str, str] = {}

    def http(name: str, server: Server, its: Requests, short: bool) -> Turn:
        if short:
            return served(first, server, its, count=3)
        first.load(its)
        second.load(bulk)
        second.begin(server, connections=clients)
        try:
            # Bulk has a third of a second to pile up.
            times = [0.3 + t for t in arrivals(LANE_RATE, seconds, seed=0)]
            return served(first, server, its, run="open", connections=8, times=times)
        finally:
            ran = second.end(stop=True)
            done[name] = f"{name} {len(ran.seconds) / ran.elapsed:.3g}/s"

    found = _take(bench, row, _over(servers, http), inputs, rounds=1, budget=seconds)
    note = (
        f"{LANE_RATE:g} queries per second, Poisson, latencies from the intended instant; bulk "
        f"requests answered meanwhile: {', '.join(done.values())}"
    )
    _add(bench, replace(row, note=note), found, absent)


def test_outputs(bench: Bench, stage: Stage) -> None:
    """All three outputs of passages in one request, which no peer's server answers."""
    path, dtype = _small(bench), "fp32"
    clients = bench.pick(8, 2)
    sets = _passages(bench.pick(PASSAGES, 3), 4 * clients, bench.pick(2, 1))
    inputs = [Requests(its.inputs, tuple(encoders.KEYS)) for its in sets]
    name = f"dense, sparse, ColBERT at once: 8 clients, {PASSAGES} passages a request, {dtype}"
    row = _row(bench, path, name, dtype, *_sizes(inputs), unit="tokens/s")
    servers, _ = _begin(bench, stage, row, path, dtype)
    engine, client, count = stage.engine(bench, path, dtype), stage.client(), len(inputs[0].inputs)

    def http(_: str, server: Server, its: Requests, short: bool) -> Turn:
        return served(client, server, its, connections=clients, count=count).whole()

    servers = {OURS: servers[OURS]}
    candidates = _over(servers, http) | {ENGINE: lambda its, short: engine.offline(its)}
    every = tuple(encoders.KEYS)
    found = _take(bench, row, candidates, inputs, rounds=5, budget=10.0, outputs=every)
    note = _note(servers, found, "safetensors with float32 token vectors; no peer's server has it")
    _add(bench, replace(row, note=note), found, {}, cores=bench.threads)


# The last of them is of another checkpoint, whose servers take the place of those before.
@pytest.mark.parametrize(
    ("size", "dtype"), [("m3fast-tiny", "fp32"), ("m3fast-tiny", "bf16"), ("2 layers", "fp32")]
)
def test_query(bench: Bench, stage: Stage, size: str, dtype: str) -> None:
    """One query after the other over one connection."""
    _one_bf16_toy(bench, dtype)
    if size == "m3fast-tiny":
        path = bench.model or TINY
    elif bench.model or bench.scale.name in ("smoke", "quick"):
        pytest.skip("not with --model or --quick")
    else:
        path = bench.checkpoint(bench.encoder_shape(2))
    which = dtype if bench.model else f"{size}, {dtype}"
    name = f"one query of {QUERY} tokens over HTTP, {which}"
    row = _row(bench, path, name, dtype, f"a text of {QUERY} tokens, its dense vector in base64")
    servers, absent = _begin(bench, stage, row, path, dtype)
    engine, client = stage.engine(bench, path, dtype), stage.client()
    concurrent = stage.engine(bench, path, dtype, "AsyncEngine").concurrent
    inputs = [Requests(texts([QUERY] * 64, seed)) for seed in range(4)]
    burst = {"smoke": 3, "quick": 80}.get(bench.scale.name, 25)
    rounds = 16 if path == TINY else 10

    def count(short: bool) -> int:
        return min(burst, 10) if short else burst

    def http(_: str, server: Server, its: Requests, short: bool) -> Turn:
        return served(client, server, its, count=count(short))

    candidates = _over(servers, http) | {
        ENGINE: lambda its, short: engine.one_by_one(its, count(short)),
        ASYNC: lambda its, short: concurrent(its, 1, count(short)),
    }
    found = _take(bench, row, candidates, inputs, rounds=rounds, budget=10.0)
    note = _note(servers, found, f"bursts of {burst}")
    _add(bench, replace(row, note=note), found, absent)

    beyond = {name: _beyond(found[name], found[ENGINE]) for name in (OURS, ASYNC)}
    name = f"HTTP beyond Engine.encode, one query, {which}"
    words = "median of a burst over HTTP less that of Engine.encode in the same round"
    part = 1e3 * median(beyond[ASYNC].seconds) if beyond[ASYNC].seconds else float("nan")
    note = f"AsyncEngine's part of it: {part:.2g} ms"
    row = replace(_row(bench, path, name, dtype, words), note=note)
    bench.add(row, {OURS: beyond[OURS]}, {}, {OURS: millis(2)}, void=_void(bench, found, OURS))


def _small(bench: Bench) -> Path:
    """The checkpoint of rows with bulk, which would be minutes of work for a large one."""
    if bench.model and bench.shape_of(bench.model).hidden > 256:
        pytest.skip("bulk is for a small --model: a request would run out of time")
    return bench.model or TINY


def _one_bf16_toy(bench: Bench, dtype: str) -> None:
    """A smoke test shows with the row `short` that bf16 is served."""
    if bench.scale.smoke and dtype == "bf16":
        pytest.skip("one toy size is that of the row `short`")


def _begin(
    bench: Bench, stage: Stage, row: Row, path: Path, dtype: str
) -> tuple[dict[str, Server], dict[str, str]]:
    """The row's servers, where the machine can run it."""
    if dtype == "bf16":
        bench.need(row, record.has_bf16(), NO_BF16)
    return stage.servers(bench, path, dtype)


def _over(
    servers: Mapping[str, Server], turn: Callable[[str, Server, Requests, bool], Turn]
) -> dict[str, Candidate]:
    return {name: partial(turn, name, server) for name, server in servers.items()}


def _take(
    bench: Bench, row: Row, candidates: Mapping[str, Candidate], inputs: list[Requests], *,
    rounds: int, budget: float, outputs: tuple[str, ...] = DENSE,
) -> dict[str, Taken]:  # fmt: skip
    """Turns of all, FlagEmbedding's and the engine's answers being the truth."""
    quick = bench.scale.name == "quick"
    first = {name: candidates[name] for name in (FLAG, ENGINE) if name in candidates}
    dtype = next(short for short, name in NAMES.items() if name == row.dtype)
    return take(
        {**first, **candidates},
        inputs,
        rounds=min(rounds, bench.scale.rounds or rounds),
        budget=budget / 3 if quick else min(budget, bench.scale.budget),
        least=1 if quick else 2,
        judge=encoders.differ(TOLERANCE[dtype], outputs),
        say=paced(lambda line: bench.say(f"{row.name}: {line}")),
    )


def _add(
    bench: Bench, row: Row, found: Mapping[str, Taken], absent: Mapping[str, str],
    aims: Mapping[str, Aim] | None = None, cores: int = 0,
) -> None:  # fmt: skip
    samples = {name: its.sampled() for name, its in found.items()}
    bench.add(row, samples, absent, aims or {}, void=_void(bench, found, ENGINE, cores))


def _void(bench: Bench, found: Mapping[str, Taken], name: str, cores: int = 0) -> dict[str, str]:
    """`void` of Bench.add: `name` does not count where the engine's own turns were spoiled."""
    reason = disturbed(found[ENGINE], cores) if ENGINE in found and not bench.scale.smoke else ""
    return {name: reason} if reason else {}


def _row(
    bench: Bench, path: Path, name: str, dtype: str, words: str, tokens: int | None = None,
    padding: float | None = None, unit: str = "s",
) -> Row:  # fmt: skip
    return Row(
        name,
        shape=f"{bench.shape_of(path)}, {words}",
        dtype=NAMES[dtype],
        tokens=tokens,
        padding=padding,
        unit=unit,
        model=True,
        requests=1 if unit == "requests/s" else None,
    )


def _passages(each: int, requests: int, sets: int) -> list[Requests]:
    """So many sets of requests, `each` passages in a request, of about 180 tokens."""
    found = []
    for seed in range(sets):
        total = each * requests
        its = texts(mix("passages", 250 * total, seed)[:total], seed)
        found.append(Requests([its[i : i + each] for i in range(0, total, each)]))
    return found


def _sizes(inputs: list[Requests]) -> tuple[str, int, float]:
    """What the first of them holds, in words; its tokens; its padding in sorted batches of 32."""
    its = inputs[0]
    # A word is a token, and <s> and </s> are two more.
    lengths = [text.count(" ") + 3 for text in its.texts()]
    words = f"{len(its.inputs)} requests, {len(lengths)} texts of {min(lengths)} to {max(lengths)}"
    return f"{words} tokens", sum(lengths), padding_ratio(lengths, 32)


def _beyond(its: Taken, engine: Taken) -> Sampled:
    """By round, how much longer it took than the engine."""
    pairs = zip(its.turns, engine.turns, strict=False)
    gaps = [median(a.seconds) - median(b.seconds) for a, b in pairs]
    wrong = its.wrong or engine.wrong
    return Sampled([] if wrong else gaps, wrong)


def _note(servers: Mapping[str, Server], found: Mapping[str, Taken], *more: str) -> str:
    """How the servers are set up, and the CPU that a request took."""
    client = [1e3 * turn.client for name in servers for turn in found[name].turns]
    cpu = [
        f"{name} {1e3 * median(turn.cpu for turn in its.turns):.3g}"
        for name, its in found.items()
        if its.turns and not its.wrong
    ]
    parts = [*more]
    if cpu and client:
        parts.append(f"CPU per request: client {median(client):.2g}, {', '.join(cpu)} ms")
    if together := [f"{n}: {s.note}" for n, s in servers.items() if s.note]:
        parts.append(
            f"behind FastAPI a thread takes what waits, up to {TOGETHER} texts, in "
            f"{'; '.join(together)}"
        )
    if INFINITY in servers:
        parts.append(f"{INFINITY}'s own server, batches of 32: {infinity.versions()}")
    return "; ".join(parts)
