"""Requests that are malformed, pipelined or cut short, over real sockets to a trivial app."""

from __future__ import annotations

import json
import time

import pytest
from faults import started
from servers import eventually
from wire import EchoApp, Wire, request


def message(body: bytes) -> str:
    return json.loads(body)["error"]["message"]


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"hello\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / FTP/1.1\r\n\r\n",
        b"get / HTTP/1.1\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"GET nowhere HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost x\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: b\x00c\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
        b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"POST / HTTP/1.1\r\nContent-Length: -3\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 0x10\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused(sent) -> None:
    app = EchoApp()
    with started(app) as server:
        with Wire(server.port) as wire:
            wire.send(sent)
            status, headers, body = wire.response()
            assert status == 400 and headers["connection"] == "close" and wire.ended
            assert message(body) == "request: expected HTTP/1.1, found something else"
        assert not app.seen and server.statuses == [400]
        assert server.get("/after").status_code == 200


@pytest.mark.parametrize("bad", [b"zz\r\n", b"-1\r\n", b"1\r\nabc\r\n", b"ffffffffffffffffff\r\n"])
def test_a_broken_chunk_is_refused_and_the_application_told(bad) -> None:
    app = EchoApp()
    with started(app) as server, Wire(server.port) as wire:
        head = b"POST /broken HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        wire.send(head + b"2\r\nab\r\n")
        eventually(lambda: "/broken" in app.headers)  # the application has begun
        wire.send(bad)
        assert wire.response()[0] == 400
        eventually(lambda: app.gone == ["/broken"])
        assert server.server.connections.open, "told before the connection ends"
        assert wire.ended and not app.seen


def test_chunks_that_are_hardly_any_body_are_refused() -> None:
    app = EchoApp()
    head = b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with started(app, max_header=4096) as server:
        for endless in (b"1;" + b"e" * 300_000, b"0\r\nT: " + b"t" * 300_000):
            with Wire(server.port) as wire:
                wire.send(head)
                eventually(lambda: app.headers.pop("/c", None))
                wire.send(endless)
                assert wire.response()[0] == 400
        eventually(lambda: app.gone == ["/c", "/c"])
        with Wire(server.port) as wire:
            wire.send(head)
            for _ in range(5000):
                wire.send(b"1\r\na\r\n")
            wire.send(b"0\r\nTrailer: x\r\n\r\n" + request("/next"))
            assert wire.response()[2] == b"POST /c 5000"
            assert wire.response()[2] == b"GET /next 0"
        assert b"trailer" not in dict(app.headers["/c"])


def test_requests_sent_together_are_answered_in_order() -> None:
    app = EchoApp()
    with started(app) as server, Wire(server.port) as wire:
        wire.send(b"".join(request(f"/{i}", b"x" * i) for i in range(20)))
        for i in range(20):
            assert wire.response()[2] == f"POST /{i} {i}".encode()


def test_a_body_longer_than_announced_spoils_only_what_follows() -> None:
    app = EchoApp()
    with started(app) as server, Wire(server.port) as wire:
        wire.send(request("/held", b"abc") + b"more than said")
        eventually(lambda: app.seen)
        app.gate.set()
        status, headers, body = wire.response()
        assert (status, body) == (200, b"POST /held 3") and headers["connection"] == "close"
        assert wire.ended and server.statuses == [400]


def test_a_body_shorter_than_announced_ends_with_the_connection() -> None:
    app = EchoApp()
    with started(app) as server:
        with Wire(server.port) as wire:
            wire.send(request("/short", None, "Content-Length: 10", method="POST") + b"abc")
        eventually(lambda: app.gone == ["/short"])
        assert not app.seen


def test_what_is_left_of_a_body_nobody_wants_does_not_hold_the_connection() -> None:
    with started(EchoApp()) as server, Wire(server.port) as wire:
        wire.send(request("/early", None, "Content-Length: 1000000", method="POST") + b"abc")
        assert wire.response()[0] == 200
        assert wire.ended


def test_such_a_rest_is_thrown_away_while_it_comes_and_not_for_ever(monkeypatch) -> None:
    monkeypatch.setattr("m3fast.server.http.protocol.QUIET", 2.0)
    head = request("/early", None, "Content-Length: 9", method="POST")
    with started(EchoApp()) as server:
        with Wire(server.port) as wire:
            wire.send(head)
            assert wire.response()[0] == 200
            for _ in range(9):  # 2.7 s in all
                time.sleep(0.3)
                wire.send(b"x")
            wire.send(request("/next"))
            assert wire.response()[2] == b"GET /next 0"
        monkeypatch.setattr("m3fast.server.http.protocol.LINGER", 0.6)
        with Wire(server.port) as wire:
            wire.send(head)
            assert wire.response()[0] == 200
            for _ in range(9):
                time.sleep(0.15)
                wire.send(b"x")
            wire.send(request("/next"))
            assert wire.ended


def test_who_was_not_asked_for_a_body_is_told_that_the_connection_ends() -> None:
    """What comes next on it could be either the body or another request."""
    with started(EchoApp()) as server, Wire(server.port) as wire:
        expect = ("Content-Length: 9", "Expect: 100-continue")
        wire.send(request("/early", None, *expect, method="POST"))
        eventually(lambda: server.server.connections.open)
        (connection,) = server.server.connections.open
        assert wire.response()[0] == 200
        eventually(lambda: connection._lingers)
        assert wire.ended


def test_an_upgrade_is_ignored_and_its_body_read() -> None:
    """Java's HttpClient asks for h2c with every first request, its body at once."""
    app = EchoApp()
    with started(app) as server, Wire(server.port) as wire:
        upgrade = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAA")
        for _ in range(3):
            wire.send(request("/java", b"abc", *upgrade))
            assert wire.response()[2] == b"POST /java 3"
        app.headers.clear()
        sent = request("/java", b"abcdef", *upgrade)
        wire.send(sent[:-4])
        eventually(lambda: "/java" in app.headers)
        wire.send(sent[-4:])
        assert wire.response()[2] == b"POST /java 6"
        wire.send(request("/ws", None, "Connection: Upgrade", "Upgrade: websocket"))
        assert wire.response()[2] == b"GET /ws 0"
