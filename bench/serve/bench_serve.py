"""The HTTP server beside peers behind theirs, and what it costs beyond the engine.

Every server and the client are processes of their own, on the same cores. Rows in bf16 have no
peers, which compute in fp32 on a CPU: they show what HTTP takes of the faster engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest

from bench.core.dtypes import TOLERANCE
from bench.core.harness import OURS, Bench, millis, share, tail
from bench.core.workloads import TINY, mix, texts
from bench.peers import encodings
from bench.peers.encodings import KEYS
from bench.serve import shared
from bench.serve.requests import Requests, arrivals
from bench.serve.servers import Server
from bench.serve.shared import ASYNC, DENSE, ENGINE
from bench.serve.stage import Stage, begin, over
from bench.serve.turns import Taken, Turn, served

QUERY = 20  # tokens
CLIENTS = 64
PASSAGES = 32  # per request
LANE_CLIENTS = 16  # with bulk beside single queries
SHORT = "short queries (5 to 40 tokens)"
LOAD = 0.7  # of the capacity just measured
LANE_RATE = 40.0  # queries per second beside bulk


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
    inputs = shared.passages(bench.pick(PASSAGES, 3), clients, bench.pick(2, 1))
    name = f"bulk: {CLIENTS} clients, {PASSAGES} passages a request, {dtype}"
    row = shared.row_of(bench, path, name, dtype, *shared.sizes(inputs), unit="tokens/s")
    servers, absent = begin(bench, stage, row, path, dtype)
    engine, client = stage.engine(bench, path, dtype), stage.client()
    concurrent = stage.engine(bench, path, dtype, "AsyncEngine").concurrent

    def count(short: bool) -> int:
        return clients // 4 if short else clients

    def http(_: str, server: Server, its: Requests, short: bool) -> Turn:
        return served(client, server, its, connections=clients, count=count(short)).whole()

    candidates = over(servers, http) | {
        ENGINE: lambda its, short: engine.offline(its),
        ASYNC: lambda its, short: concurrent(its, clients, count(short)).whole(),
    }
    found = shared.take_turns(bench, row, candidates, inputs, rounds=7, budget=9.0)
    note = shared.note(servers, found, "Engine.encode has all texts in one call")
    shared.add(bench, replace(row, note=note), found, absent, {ENGINE: share(0.9)}, bench.threads)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_short(bench: Bench, stage: Stage, dtype: str) -> None:
    """Short queries: as many as a server can, then some at instants that do not depend on it."""
    path = bench.model or TINY
    inputs = [
        Requests(texts(mix("chat", bench.pick(11_000, 400), seed), seed)) for seed in range(2)
    ]
    sizes = shared.sizes(inputs)
    name = f"{SHORT}, {CLIENTS} clients, {dtype}"
    row = shared.row_of(bench, path, name, dtype, *sizes, unit="requests/s")
    servers, absent = begin(bench, stage, row, path, dtype)
    client = stage.client()
    concurrent = stage.engine(bench, path, dtype, "AsyncEngine").concurrent
    clients = bench.pick(CLIENTS, 4)
    seconds = {"smoke": 0.2, "quick": 1.0}.get(bench.scale.name, 2.0)
    judge = encodings.differ(TOLERANCE[dtype], DENSE)
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

    candidates = over(servers, http)
    candidates[ASYNC] = lambda its, short: concurrent(its, clients, seconds=seconds).rate()
    rounds = 1 if bench.scale.name == "quick" else 2
    found = shared.take_turns(bench, row, candidates, inputs, rounds=rounds, budget=8 * seconds)
    note = shared.note(servers, found)
    shared.add(bench, replace(row, note=note), found, absent)
    cpu = f"CPU of the server per request, {SHORT}, {CLIENTS} clients, {dtype}"
    note = "of its process; with AsyncEngine, the 64 callers are in that"
    row = replace(shared.row_of(bench, path, cpu, dtype, *sizes), note=note)
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
    row = shared.row_of(bench, path, f"{SHORT} at {LOAD:.0%} of capacity, {dtype}", dtype, *sizes)
    shared.add(bench, replace(row, note=note), loaded, absent, {OURS: tail(4)})


def test_lane(bench: Bench, stage: Stage) -> None:
    """Single queries while bulk keeps the server busy."""
    path, dtype = _small(bench), "fp32"
    clients = bench.pick(LANE_CLIENTS, 4)
    bulk = shared.passages(bench.pick(PASSAGES, 3), 4 * clients, 1)[0]
    inputs = [Requests(texts([QUERY] * 64, 0))]
    name = f"one query of {QUERY} tokens beside bulk of {LANE_CLIENTS} clients, {dtype}"
    row = shared.row_of(bench, path, name, dtype, f"bulk: {shared.sizes([bulk])[0]}")
    servers, absent = begin(bench, stage, row, path, dtype)
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

    found = shared.take_turns(bench, row, over(servers, http), inputs, rounds=1, budget=seconds)
    note = (
        f"{LANE_RATE:g} queries per second, Poisson, latencies from the intended instant; bulk "
        f"requests answered meanwhile: {', '.join(done.values())}"
    )
    shared.add(bench, replace(row, note=note), found, absent)


def test_outputs(bench: Bench, stage: Stage) -> None:
    """All three outputs of passages in one request, which no peer's server answers."""
    path, dtype = _small(bench), "fp32"
    clients = bench.pick(8, 2)
    sets = shared.passages(bench.pick(PASSAGES, 3), 4 * clients, bench.pick(2, 1))
    inputs = [Requests(its.inputs, tuple(KEYS)) for its in sets]
    name = f"dense, sparse, ColBERT at once: 8 clients, {PASSAGES} passages a request, {dtype}"
    row = shared.row_of(bench, path, name, dtype, *shared.sizes(inputs), unit="tokens/s")
    servers, _ = begin(bench, stage, row, path, dtype)
    engine, client, count = stage.engine(bench, path, dtype), stage.client(), len(inputs[0].inputs)

    def http(_: str, server: Server, its: Requests, short: bool) -> Turn:
        return served(client, server, its, connections=clients, count=count).whole()

    servers = {OURS: servers[OURS]}
    candidates = over(servers, http) | {ENGINE: lambda its, short: engine.offline(its)}
    every = tuple(KEYS)
    found = shared.take_turns(bench, row, candidates, inputs, rounds=5, budget=10.0, outputs=every)
    words = "safetensors with float32 token vectors; no peer's server has it"
    note = shared.note(servers, found, words)
    shared.add(bench, replace(row, note=note), found, {}, cores=bench.threads)


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
    words = f"a text of {QUERY} tokens, its dense vector in base64"
    row = shared.row_of(bench, path, name, dtype, words)
    servers, absent = begin(bench, stage, row, path, dtype)
    engine, client = stage.engine(bench, path, dtype), stage.client()
    concurrent = stage.engine(bench, path, dtype, "AsyncEngine").concurrent
    inputs = [Requests(texts([QUERY] * 64, seed)) for seed in range(4)]
    burst = {"smoke": 3, "quick": 80}.get(bench.scale.name, 25)
    rounds = 16 if path == TINY else 10

    def count(short: bool) -> int:
        return min(burst, 10) if short else burst

    def http(_: str, server: Server, its: Requests, short: bool) -> Turn:
        return served(client, server, its, count=count(short))

    candidates = over(servers, http) | {
        ENGINE: lambda its, short: engine.one_by_one(its, count(short)),
        ASYNC: lambda its, short: concurrent(its, 1, count(short)),
    }
    found = shared.take_turns(bench, row, candidates, inputs, rounds=rounds, budget=10.0)
    note = shared.note(servers, found, f"bursts of {burst}")
    shared.add(bench, replace(row, note=note), found, absent)

    beyond = {name: shared.beyond(found[name], found[ENGINE]) for name in (OURS, ASYNC)}
    name = f"HTTP beyond Engine.encode, one query, {which}"
    words = "median of a burst over HTTP less that of Engine.encode in the same round"
    part = 1e3 * median(beyond[ASYNC].seconds) if beyond[ASYNC].seconds else float("nan")
    note = f"AsyncEngine's part of it: {part:.2g} ms"
    row = replace(shared.row_of(bench, path, name, dtype, words), note=note)
    void = shared.void(bench, found, OURS)
    bench.add(row, {OURS: beyond[OURS]}, {}, {OURS: millis(2)}, void=void)


def _small(bench: Bench) -> Path:
    """The checkpoint of rows with bulk, which would be minutes of work for a large one."""
    if bench.model and bench.shape_of(bench.model).hidden > 256:
        pytest.skip("bulk is for a small --model: a request would run out of time")
    return bench.model or TINY


def _one_bf16_toy(bench: Bench, dtype: str) -> None:
    """A smoke test shows with the row `short` that bf16 is served."""
    if bench.scale.smoke and dtype == "bf16":
        pytest.skip("one toy size is that of the row `short`")
