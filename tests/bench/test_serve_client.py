"""The client of the suite `serve` against servers whose answers a test chooses."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from bench.core import harness
from bench.peers import encodings
from bench.serve import turns
from bench.serve.client import Client
from bench.serve.requests import Requests
from benchkept import Kept
from servers import eventually

JUDGE = encodings.differ(1e-4, ("dense",))
SLEEP = 0.3


def vector(text: str) -> np.ndarray:
    """What the trivial servers say of a text."""
    return np.full(4, len(text), "<f4")


def answer(texts: list[str], off: float = 0.0) -> bytes:
    data = [
        {"index": i, "embedding": base64.b64encode(vector(text) + np.float32(off)).decode()}
        for i, text in enumerate(texts)
    ]
    return json.dumps({"data": data[::-1]}).encode()


class Trivial:
    """A server whose answers a test chooses: `reply` gets the texts and says status and body."""

    def __init__(self, reply: Callable[[list[str]], tuple[int, bytes]]) -> None:
        self.seen: list[list[str]] = []
        its = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
                its.seen.append(texts)
                status, said = reply(texts)
                self.send_response(status)
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.port, self.clock = self.http.server_port, time.CLOCK_PROCESS_CPUTIME_ID


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    its = Client()
    yield its
    its.close()


@pytest.fixture
def trivial() -> Iterator[Callable[..., Any]]:
    made: list[Trivial] = []

    def make(reply: Callable[[list[str]], tuple[int, bytes]]) -> Any:
        made.append(Trivial(reply))
        return made[-1]

    yield make
    for its in made:
        its.http.shutdown()
        its.http.server_close()


def test_client_sends_all_and_brings_answers_back(client: Client, trivial: Any) -> None:
    server = trivial(lambda texts: (200, answer(texts)))
    requests = Requests(["one", ["two", "three"], "vier €", ["five"]])
    client.load(requests)
    ran = client.run(server, connections=2, count=10, keep=[1, 2])
    assert len(ran.seconds) == len(server.seen) == ran.requests == 10
    assert 0 < max(ran.seconds) <= ran.elapsed and ran.rate == pytest.approx(10 / ran.elapsed)
    assert server.seen.count(["two", "three"]) == 3 and server.seen.count(["five"]) == 2
    assert set(ran.bodies) == {1, 2}
    found = requests.answer(ran.bodies[1])["dense_vecs"]
    assert np.array_equal(found, [vector("two"), vector("three")])  # by their index
    assert requests.answer(ran.bodies[2])["dense_vecs"][0, 0] == len("vier €")


def test_client_for_a_time_and_until_told(client: Client, trivial: Any) -> None:
    server = trivial(lambda texts: (200, answer(texts)))
    requests = Requests(["a", "b"])
    client.load(requests)
    ran = client.run(server, connections=3, seconds=0.2)
    assert ran.elapsed >= 0.2
    # One of each connection at most came too late to count.
    assert 0 <= len(ran.seconds) - round(ran.rate * 0.2) <= 3
    assert len(server.seen) == ran.requests  # what was in flight was waited for
    client.begin(server, connections=2)
    eventually(lambda: len(server.seen) >= ran.requests + 20)
    assert client.end(stop=True).requests >= 20
    assert client.run(server, count=1).requests == 1  # and it goes on


@pytest.mark.parametrize("most", [1, 8])
def test_latency_counts_from_the_intended_instant(client: Client, trivial: Any, most: int) -> None:
    """What comes while the server stands still is late, sent or not yet."""
    one_at_a_time, seen = threading.Lock(), []

    def reply(texts: list[str]) -> tuple[int, bytes]:
        with one_at_a_time:
            seen.append(texts)
            if len(seen) == 1:
                time.sleep(SLEEP)
        return 200, answer(texts)

    client.load(Requests(["a"]))
    instants = [0.0, 0.01, 0.02, 0.03]
    ran = client.run(trivial(reply), run="open", times=instants, most=most)
    assert len(ran.seconds) == 4 and (most > 1 or ran.late > SLEEP / 2)
    for since, seconds in zip(instants, sorted(ran.seconds, reverse=True), strict=True):
        assert seconds >= SLEEP - since - 0.01


@pytest.mark.parametrize("status", [503, 404])
def test_an_error_is_no_answer(client: Client, trivial: Any, status: int) -> None:
    server = trivial(lambda texts: (status, b"sorry"))
    client.load(Requests(["a"]))
    with pytest.raises(RuntimeError, match=f"HTTP/1.1 {status}"):
        client.run(server, connections=2, count=4)
    well = trivial(lambda texts: (200, answer(texts)))
    assert client.run(well, count=2).requests == 2


def test_servers_that_are_wrong_have_no_figures(client: Client, trivial: Any) -> None:
    """From sockets to records: right, off, NaN, failing."""
    replies = {
        "peer": lambda texts: (200, answer(texts)),
        "m3fast": lambda texts: (200, answer(texts)),
        "liar": lambda texts: (200, answer(texts, 0.01)),
        "nan": lambda texts: (200, answer(texts, float("nan"))),
        "short": lambda texts: (200, answer(texts[:1])),
        "down": lambda texts: (500, b"{}"),
    }
    servers = {name: trivial(reply) for name, reply in replies.items()}
    inputs = [Requests([["a", "bc"], ["def"]]), Requests([["g"], ["hi", "j"]])]

    def turn(name: str) -> turns.Candidate:
        return lambda its, short: turns.served(client, servers[name], its, count=4)

    found = turns.take(
        {name: turn(name) for name in servers}, inputs, rounds=3, budget=60, judge=JUDGE
    )
    assert "dense off by 0.01" in found["liar"].wrong and "off by nan" in found["nan"].wrong
    assert found["short"].wrong and "500" in found["down"].wrong
    kept = Kept()
    sampled = {name: its.sampled() for name, its in found.items()}
    kept.bench.add(harness.Row("row", shape="s"), sampled, {}, {"m3fast": harness.millis(1e6)})
    status = {r["candidate"]: (r["status"], r.get("samples")) for r in kept.records}
    assert status == {
        "m3fast": ("ok", 12), "peer": ("ok", 12), "liar": ("wrong", None), "nan": ("wrong", None),
        "short": ("wrong", None), "down": ("failed", None),
    }  # fmt: skip
    assert kept.records[0]["met"] and kept.records[0]["aim"] == "≤ 1e+06 ms"
