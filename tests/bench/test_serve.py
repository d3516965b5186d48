"""The suite `serve`: its turns, the peers' server, and its rows at smoke scale."""

from __future__ import annotations

import asyncio
import json
import threading
import types
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from bench.core import harness, measure
from bench.peers import encodings
from bench.report import table
from bench.serve import child_server, servers, turns
from bench.serve.client import Ran
from bench.serve.requests import Requests, arrivals
from bench.serve.turns import Turn
from benchkept import Kept, pytest_of

JUDGE = encodings.differ(1e-4, ("dense",))


def vector(text: str) -> np.ndarray:
    """What a server says of a text."""
    return np.full(4, len(text), "<f4")


def ran(seconds: list[float], elapsed: float = 1.0) -> Ran:
    return Ran(seconds, elapsed, 4.0, 0.0, 0.5, 2.0, len(seconds), {})


def test_turns_rotate_and_end_with_the_budget() -> None:
    clock, calls = types.SimpleNamespace(now=0.0), []

    def takes(name: str, seconds: float, value: float) -> turns.Candidate:
        def run(its: Requests, short: bool) -> Turn:
            calls.append(name + its.inputs[0] + ("w" if short else ""))
            clock.now += seconds
            said = {0: {"dense_vecs": np.array([value if its.inputs[0] == "x" else 0.0])}}
            return Turn([seconds], said, ran([seconds]))

        return run

    found = turns.take(
        {"a": takes("a", 1.0, 1.0), "b": takes("b", 4.0, 1.0), "c": takes("c", 9.0, 1.0),
         "d": takes("d", 1.0, 2.0)},
        [Requests(["x"]), Requests(["y"])],
        rounds=4, budget=6.0, judge=JUDGE, clock=lambda: clock.now,
    )  # fmt: skip
    assert calls[:4] == ["axw", "bxw", "cxw", "dxw"]
    assert calls[4:8] == ["ax", "bx", "cx", "dx"] and calls[8:11] == ["by", "cy", "ay"]
    assert {name: len(its.turns) for name, its in found.items()} == {"a": 4, "b": 2, "c": 2, "d": 1}
    assert found["d"].wrong and not found["d"].sampled().seconds
    hard = turns.take(
        {"e": takes("e", 10.0, 1.0)}, [Requests(["x"])], rounds=4, budget=6.0, judge=JUDGE,
        clock=lambda: clock.now,
    )  # fmt: skip
    assert len(hard["e"].turns) == 1
    turn = Turn([0.1, 0.2], {}, ran([0.1, 0.2], elapsed=3.0))
    assert turn.whole().seconds == [3.0] and turn.rate().seconds == [0.25]
    assert turn.cpu == 1.0 and turn.client == 0.25


def test_a_reference_that_was_disturbed_is_void() -> None:
    def of(*given: tuple[float, float]) -> turns.Taken:
        """Turns of so many seconds and so much CPU."""
        return turns.Taken(
            [Turn([s], {}, Ran([s], s, 1 / s, 0.0, 0.0, cpu, 1, {})) for s, cpu in given]
        )

    steady = of((1.0, 1.9), (1.1, 2.1), (9.0, 9.0))  # one of three may be
    assert turns.disturbed(steady, 2) == turns.disturbed(steady) == ""
    crowded = of((1.0, 1.2), (1.1, 1.2), (1.0, 1.3))
    assert turns.disturbed(crowded, 2) == "the machine was busy: it had 1.2 of 2 cores"
    assert turns.disturbed(crowded) == ""
    restless = of(*[(s, s) for s in (1.0, 1.0, 2.0, 2.0, 2.0)])
    assert turns.disturbed(restless) == "the machine was busy: median 2× the least"
    assert turns.disturbed(turns.Taken()) == ""


def test_tail_aim() -> None:
    """p99 against p50, and no verdict without samples enough for a p99."""
    for worst, met in ((3.9, True), (4.1, False)):
        kept = Kept()
        seconds = [1.0] * 490 + [worst] * 10
        row = harness.Row("row", shape="s")
        kept.bench.add(row, {"m3fast": measure.Sampled(seconds)}, {}, {"m3fast": harness.tail(4)})
        assert kept.records[0]["aim"] == "p99 ≤ 4× p50" and kept.records[0]["met"] is met
    kept = Kept()
    kept.bench.add(row, {"m3fast": measure.Sampled([1.0] * 9)}, {}, {"m3fast": harness.tail(4)})
    assert "aim" not in kept.records[0]


def test_requests_per_second_and_few_quantiles() -> None:
    kept = Kept()
    row = harness.Row("row", shape="s", unit="requests/s", requests=1)
    kept.bench.add(row, {"m3fast": measure.Sampled([0.001] * 3)}, {}, {})
    assert table.figure(kept.records[0]) == "1,000 requests/s"
    many = [i / 1e4 for i in range(10_001)]
    thinned = measure.ordered(many[::-1])
    assert len(thinned) == measure.KEPT_SAMPLES and (thinned[0], thinned[-1]) == (0.0, 1.0)
    assert thinned == sorted(thinned) and measure.ordered([2.0, 1.0]) == [1.0, 2.0]


def test_arrivals_are_poisson() -> None:
    times = arrivals(100.0, 200.0, seed=0)
    gaps = np.diff(times)
    assert len(times) == 20_000 and times == arrivals(100.0, 200.0, seed=0)
    assert gaps.mean() == pytest.approx(0.01, rel=0.05)
    assert gaps.std() == pytest.approx(0.01, rel=0.05)


def test_peers_server_batches_and_answers_each(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    busy = threading.Event()

    def encode(texts: list[str]) -> np.ndarray:
        calls.append(len(texts))
        if "wait" in texts:
            assert busy.wait(10)
        if "bad" in texts:
            raise ValueError("no such text")
        return np.stack([vector(text) for text in texts])

    async def run(most: int) -> list[httpx.Response]:
        busy.clear()
        calls.clear()
        transport = httpx.ASGITransport(
            child_server.application(encode, most), raise_app_exceptions=False
        )
        async with httpx.AsyncClient(transport=transport, base_url="http://peer") as its:

            async def post(given: Any) -> httpx.Response:
                return await its.post("/v1/embeddings", json={"model": "m", "input": given})

            first = asyncio.create_task(post("wait"))
            while not calls:
                await asyncio.sleep(0.01)
            rest = [asyncio.create_task(post(given)) for given in ("ab", ["c", "def"], ["gh"])]
            await asyncio.sleep(0.1)
            busy.set()
            return [await task for task in (first, *rest)] + [await post("bad"), await post("x")]

    for most, sizes in ((256, [1, 4, 1, 1]), (3, [1, 3, 1, 1, 1]), (1, [1, 1, 2, 1, 1, 1])):
        found = asyncio.run(run(most))
        assert calls == sizes
        assert [r.status_code for r in found] == [200, 200, 200, 200, 500, 200]
        texts = [["wait"], ["ab"], ["c", "def"], ["gh"], [], ["x"]]
        for its, response in zip(texts, found, strict=True):
            if its:
                vectors = Requests([its]).answer(response.content)["dense_vecs"]
                assert np.array_equal(vectors, [vector(text) for text in its])


def test_absent_peers_are_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers.infinity, "PYTHON", tmp_path / "bin" / "python")
    monkeypatch.setitem(servers.PACKAGES, servers.FLAG, "no_such_package")
    found, absent = servers.start((servers.FLAG, servers.INFINITY), tmp_path, 1, "float32", "")
    assert not found and absent == {
        servers.FLAG: "No module named 'no_such_package'",
        servers.INFINITY: "not installed: make bench-peers",
    }
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    _, absent = servers.start((servers.INFINITY,), tmp_path, 1, "float32", "")
    assert absent[servers.INFINITY].startswith("its server is not installed")


@pytest.mark.slow
def test_a_server_that_ends_says_why(tmp_path: Path) -> None:
    request = Requests(["a"]).raw()[0]
    with pytest.raises(RuntimeError, match=r"exit status \d: .*m3fast"):
        servers.start((measure.OURS,), tmp_path / "none", 1, "float32", request)


@pytest.mark.slow
def test_smoke_of_its_rows(tmp_path: Path) -> None:
    """m3fast's server, and its drop-in in a peer's place: every row, results compared."""
    records = tmp_path / "records.jsonl"
    done = pytest_of(
        "bench/serve/bench_serve.py", "--device", "cpu", "--records", str(records)
    )
    assert done.returncode == 0, done.stdout[-3000:]
    found = [json.loads(line) for line in records.read_text(encoding="utf-8").splitlines()]
    ok = {(r["row"].split(",")[0], r["candidate"]) for r in found if r["status"] == "ok"}
    assert {row for row, name in ok if name == "m3fast"} == {
        "bulk: 64 clients", "short queries (5 to 40 tokens)", "one query of 20 tokens over HTTP",
        "CPU of the server per request", "short queries (5 to 40 tokens) at 70% of capacity",
        "one query of 20 tokens beside bulk of 16 clients", "dense", "HTTP beyond Engine.encode",
    }  # fmt: skip
    assert ("bulk: 64 clients", servers.STAND_IN) in ok
    skipped = {r["candidate"] for r in found if r["status"] == "skipped"} - {"m3fast"}
    assert skipped == {servers.FLAG, servers.SENTENCE, servers.INFINITY}
