"""Connections that are slow, greedy, silent or broken, over real sockets to a trivial app."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
import time

import pytest
from faults import Wire, certificate, request, started
from servers import PATIENCE, eventually


class App:
    """Answers with what it was sent; remembers how each request went.

    Attributes:
        seen: (path, body) of requests that came whole; gone: paths whose client went away.
        gate: /held waits for it.
    """

    def __init__(self) -> None:
        self.seen: list[tuple[str, bytes]] = []
        self.gone: list[str] = []
        self.gate = threading.Event()
        self.headers: dict[str, list[tuple[bytes, bytes]]] = {}

    async def __call__(self, scope, receive, send) -> None:
        path, body, more = scope["path"], b"", True
        self.headers[path] = scope["headers"]
        if path != "/early":
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    self.gone.append(path)
                    return
                body += message["body"]
                more = message["more_body"]
        self.seen.append((path, body))
        if path == "/held":
            await asyncio.to_thread(self.gate.wait, PATIENCE)
        size = int(path.rsplit("/", 1)[1]) if path.startswith(("/big/", "/lump/")) else 0
        piece = size if path.startswith("/lump/") else 1 << 16
        answer = f"{scope['method']} {path} {len(body)}".encode()
        length = str(size or len(answer)).encode()
        await send({"type": "http.response.start", "status": 200,
                    "headers": [(b"content-length", length)]})  # fmt: skip
        for _ in range(piece, size, piece):
            await send({"type": "http.response.body", "body": bytes(piece), "more_body": True})
            size -= piece
        await send({"type": "http.response.body", "body": bytes(size) if size else answer})
        if size and (await receive())["type"] == "http.disconnect":
            self.gone.append(path)


def message(body: bytes) -> str:
    return json.loads(body)["error"]["message"]


def test_long_headers_are_refused_and_others_are_not() -> None:
    app = App()
    with started(app, max_header=4096) as server:
        for filler in (
            ["X-A: " + "a" * 5000],
            [f"X-{i}: {'b' * 50}" for i in range(100)],
            ["X-A: " + "a" * 2_000_000],
        ):
            with Wire(server.port) as wire:
                wire.send(request("/", None, *filler))
                status, headers, body = wire.response()
                assert status == 431 and headers["connection"] == "close"
                assert message(body) == "request: its line and headers are too long"
                assert wire.ended and not wire.reset, "a cut would hide the answer"
        with Wire(server.port) as wire:
            wire.send(request("/" + "u" * 5000))
            assert wire.response()[0] == 431
        assert not app.seen
        with Wire(server.port) as wire:
            # In one go: a body larger than the limit, and two more requests with long headers.
            long = "X-A: " + "a" * 3500
            wire.send(request("/a", b"b" * 9000, long) + 2 * request("/b", b"c" * 50, long))
            assert [wire.response()[0] for _ in range(3)] == [200, 200, 200]
            wire.send(request("/c", b"b" * 500_000, long))
            assert wire.response()[2] == b"POST /c 500000"
            wire.send(request("/d", b"b" * 20_000) + b"GET /e HTTP/1.1\r\nHo")
            assert wire.response()[2] == b"POST /d 20000"
            wire.send(b"st: x\r\n\r\n")
            assert wire.response()[2] == b"GET /e 0"
        assert server.statuses == [431] * 4


def test_a_header_without_end_is_refused() -> None:
    with started(App(), max_header=4096) as server, Wire(server.port) as wire:
        wire.send(b"GET / HTTP/1.1\r\nX-A: ")
        for _ in range(20):
            wire.send(b"a" * 500)
            time.sleep(0.005)
        assert wire.response()[0] == 431 and wire.ended


def test_slow_headers_are_refused_and_silence_is_cut() -> None:
    app = App()
    with started(app, header_timeout=1.0) as server:
        with Wire(server.port) as wire:
            wire.send(b"GET / HTTP/1.1\r\nHost: x\r\n")
            status, headers, _ = wire.response()
            assert status == 408 and headers["connection"] == "close" and wire.ended
        with Wire(server.port) as wire:
            assert wire.ended, "not a word, as nothing was asked"
        with Wire(server.port) as wire:  # byte by byte gives no more time
            end = time.monotonic() + PATIENCE
            for byte in request("/", None, "X-A: " + "a" * 100_000):
                wire.send(bytes([byte]))
                time.sleep(0.01)
                if server.statuses.count(408) == 2:
                    break
                assert time.monotonic() < end
            assert wire.response()[0] == 408
        assert not app.seen and server.statuses == [408, 408]


def test_time_for_headers_does_not_run_while_a_request_before_is_answered() -> None:
    app = App()
    with started(app, header_timeout=3.0) as server, Wire(server.port) as wire:
        head, rest = b"GET /next HTTP/1.1\r\nHo", b"st: x\r\n\r\n"
        wire.send(request("/held") + head)
        eventually(lambda: app.seen)
        time.sleep(3.3)
        app.gate.set()
        assert wire.response()[2] == b"GET /held 0"
        wire.send(rest)
        assert wire.response()[2] == b"GET /next 0"


def test_time_for_headers_begins_with_their_first_byte() -> None:
    with started(App(), header_timeout=3.0, idle_timeout=30.0) as server, Wire(server.port) as wire:
        wire.send(request("/a"))
        assert wire.response()[0] == 200
        time.sleep(3.2)
        wire.send(b"GET /b HTTP/1.1\r\nHo")
        time.sleep(0.3)
        wire.send(b"st: x\r\n\r\n")
        assert wire.response()[2] == b"GET /b 0"


def test_an_idle_connection_is_closed_whatever_blank_lines_it_sends() -> None:
    with started(App(), idle_timeout=0.3) as server:
        for noise in (b"", b"\r\n"):
            with Wire(server.port) as wire:
                wire.send(request("/"))
                assert wire.response()[0] == 200
                ended = threading.Event()
                reader = threading.Thread(target=lambda w=wire, e=ended: w.ended and e.set())
                reader.start()
                end = time.monotonic() + PATIENCE
                while not ended.wait(0.02):
                    wire.send(noise)
                    assert time.monotonic() < end
                reader.join()


def test_a_connection_is_used_again_and_again() -> None:
    app = App()
    with started(app, idle_timeout=5.0) as server, Wire(server.port) as wire:
        for i in range(500):
            wire.send(request(f"/{i}", b"x" * i))
            assert wire.response()[2] == f"POST /{i} {i}".encode()
        (connection,) = server.server.connections.open
        assert connection.timeout_keep_alive_task is None, "uvicorn's own timer would cut it"


@pytest.mark.parametrize("secure", [False, True])
def test_a_client_that_does_not_read_is_cut(secure, tmp_path) -> None:
    app, more = App(), {}
    if secure:
        more["tls_cert"], more["tls_key"] = certificate(tmp_path)
    with started(app, write_timeout=0.5, **more) as server:
        with Wire(server.port, receive_buffer=4096) as wire:
            if secure:
                context = ssl.create_default_context(cafile=more["tls_cert"])
                wire.socket = context.wrap_socket(wire.socket, server_hostname="127.0.0.1")
            wire.send(request(f"/big/{64 << 20}"))
            eventually(lambda: app.gone)
            eventually(lambda: not server.server.connections.open)
        eventually(lambda: not server.server.connections.tasks)


@pytest.mark.parametrize("how", ["big", "lump"])
def test_a_client_that_reads_slowly_gets_everything(how) -> None:
    app, size = App(), 6 << 20
    with (
        started(app, write_timeout=3.0, idle_timeout=3.0) as server,
        Wire(server.port, receive_buffer=1 << 16) as wire,
    ):
        wire.send(request(f"/{how}/{size}"))
        for _ in range(20):  # 4 s in all
            time.sleep(0.2)
            assert wire.more()
        status, _, body = wire.response()
        assert status == 200 and len(body) == size
        time.sleep(0.3)
        wire.send(request("/"))
        assert wire.response()[0] == 200, "time to be idle begins with the last byte taken"


def test_connections_are_limited() -> None:
    with started(App(), max_requests=1) as server:
        wires = [Wire(server.port) for _ in range(4)]
        for wire in wires:
            wire.send(request("/"))
            assert wire.response()[0] == 200
        with Wire(server.port) as fifth:
            status, headers, _ = fifth.response()
            assert status == 503 and headers["retry-after"] == "1" and fifth.ended
        wires.pop().socket.close()
        eventually(lambda: len(server.server.connections.open) == 3)
        with Wire(server.port) as again:
            again.send(request("/"))
            assert again.response()[0] == 200
        for wire in wires:
            wire.socket.close()


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
    app = App()
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
    app = App()
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
    app = App()
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
    app = App()
    with started(app) as server, Wire(server.port) as wire:
        wire.send(b"".join(request(f"/{i}", b"x" * i) for i in range(20)))
        for i in range(20):
            assert wire.response()[2] == f"POST /{i} {i}".encode()


def test_requests_that_wait_on_one_connection_are_limited() -> None:
    app = App()
    with started(app) as server, Wire(server.port) as wire:
        wire.send(request("/held") + 500 * request("/a"))
        eventually(lambda: server.statuses == [503])
        app.gate.set()
        answers = [wire.response() for _ in range(65)]
        assert [status for status, _, _ in answers] == [200] * 65
        assert answers[-1][1]["connection"] == "close" and wire.ended
        assert len(app.seen) == 65


def test_a_body_longer_than_announced_spoils_only_what_follows() -> None:
    app = App()
    with started(app) as server, Wire(server.port) as wire:
        wire.send(request("/held", b"abc") + b"more than said")
        eventually(lambda: app.seen)
        app.gate.set()
        status, headers, body = wire.response()
        assert (status, body) == (200, b"POST /held 3") and headers["connection"] == "close"
        assert wire.ended and server.statuses == [400]


def test_a_body_shorter_than_announced_ends_with_the_connection() -> None:
    app = App()
    with started(app) as server:
        with Wire(server.port) as wire:
            wire.send(request("/short", None, "Content-Length: 10", method="POST") + b"abc")
        eventually(lambda: app.gone == ["/short"])
        assert not app.seen


def test_what_is_left_of_a_body_nobody_wants_does_not_hold_the_connection() -> None:
    with started(App()) as server, Wire(server.port) as wire:
        wire.send(request("/early", None, "Content-Length: 1000000", method="POST") + b"abc")
        assert wire.response()[0] == 200
        assert wire.ended


def test_such_a_rest_is_thrown_away_while_it_comes_and_not_for_ever(monkeypatch) -> None:
    monkeypatch.setattr("m3fast.server.http.protocol.QUIET", 2.0)
    head = request("/early", None, "Content-Length: 9", method="POST")
    with started(App()) as server:
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
    with started(App()) as server, Wire(server.port) as wire:
        expect = ("Content-Length: 9", "Expect: 100-continue")
        wire.send(request("/early", None, *expect, method="POST"))
        eventually(lambda: server.server.connections.open)
        (connection,) = server.server.connections.open
        assert wire.response()[0] == 200
        eventually(lambda: connection._lingers)
        assert wire.ended


def test_an_upgrade_is_ignored_and_its_body_read() -> None:
    """Java's HttpClient asks for h2c with every first request, its body at once."""
    app = App()
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
