"""Limits on headers, time and connections, over real sockets to a trivial app."""

from __future__ import annotations

import json
import ssl
import threading
import time

import pytest
from faults import started
from servers import PATIENCE, eventually
from wire import EchoApp, Wire, certificate, request


def message(body: bytes) -> str:
    return json.loads(body)["error"]["message"]


def test_long_headers_are_refused_and_others_are_not() -> None:
    app = EchoApp()
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
    with started(EchoApp(), max_header=4096) as server, Wire(server.port) as wire:
        wire.send(b"GET / HTTP/1.1\r\nX-A: ")
        for _ in range(20):
            wire.send(b"a" * 500)
            time.sleep(0.005)
        assert wire.response()[0] == 431 and wire.ended


def test_slow_headers_are_refused_and_silence_is_cut() -> None:
    app = EchoApp()
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
    app = EchoApp()
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
    more = {"header_timeout": 3.0, "idle_timeout": 30.0}
    with started(EchoApp(), **more) as server, Wire(server.port) as wire:
        wire.send(request("/a"))
        assert wire.response()[0] == 200
        time.sleep(3.2)
        wire.send(b"GET /b HTTP/1.1\r\nHo")
        time.sleep(0.3)
        wire.send(b"st: x\r\n\r\n")
        assert wire.response()[2] == b"GET /b 0"


def test_an_idle_connection_is_closed_whatever_blank_lines_it_sends() -> None:
    with started(EchoApp(), idle_timeout=0.3) as server:
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
    app = EchoApp()
    with started(app, idle_timeout=5.0) as server, Wire(server.port) as wire:
        for i in range(500):
            wire.send(request(f"/{i}", b"x" * i))
            assert wire.response()[2] == f"POST /{i} {i}".encode()
        (connection,) = server.server.connections.open
        assert connection.timeout_keep_alive_task is None, "uvicorn's own timer would cut it"


@pytest.mark.parametrize("secure", [False, True])
def test_a_client_that_does_not_read_is_cut(secure, tmp_path) -> None:
    app, more = EchoApp(), {}
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
    app, size = EchoApp(), 6 << 20
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
    with started(EchoApp(), max_requests=1) as server:
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


def test_requests_that_wait_on_one_connection_are_limited() -> None:
    app = EchoApp()
    with started(app) as server, Wire(server.port) as wire:
        wire.send(request("/held") + 500 * request("/a"))
        eventually(lambda: server.statuses == [503])
        app.gate.set()
        answers = [wire.response() for _ in range(65)]
        assert [status for status, _, _ in answers] == [200] * 65
        assert answers[-1][1]["connection"] == "close" and wire.ended
        assert len(app.seen) == 65
