"""Stopping: requests that were admitted are answered, and there is an end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from faults import Recording, spied, started
from servers import PATIENCE, eventually, free_port, small
from wire import Wire, embed, request

from m3fast.server.http import listen
from m3fast.server.run import Server
from m3fast.server.settings import Settings


def test_stopped_while_loading_it_does_not_wait() -> None:
    gate, loading, codes = threading.Event(), threading.Event(), []

    def load():
        loading.set()
        gate.wait(PATIENCE)
        raise InterruptedError

    server = Server(load, Settings(port=0), Recording())
    thread = threading.Thread(target=lambda: codes.append(server.run()))
    thread.start()
    assert loading.wait(PATIENCE)
    server.stop()
    thread.join(PATIENCE / 2)
    assert codes == [0]
    gate.set()


def test_stopping_answers_what_was_admitted_and_takes_no_more() -> None:
    with started() as server, spied() as spy:
        with Wire(server.port) as idle, Wire(server.port) as begun, Wire(server.port) as admitted:
            idle.send(embed())
            assert idle.response()[0] == 200
            begun.send(embed()[:30])
            spy.hold()
            admitted.send(embed() + request("/ready"))
            spy.busy()
            server.server.stop()
            assert idle.ended, "nothing is asked there"
            with pytest.raises(ConnectionRefusedError):
                Wire(server.port)
            begun.send(embed()[30:])
            status, headers, body = begun.response()
            assert (status, headers["connection"]) == (503, "close") and b"shutting down" in body
            assert begun.ended and server.code is None
            spy.gate.set()
            status, _, body = admitted.response()
            assert status == 200 and len(json.loads(body)[0]) == small().config.hidden_size
            status, headers, body = admitted.response()
            assert (status, headers["connection"]) == (503, "close") and b"shutting down" in body
            assert admitted.ended
        assert server.stop() == 0


def test_a_request_that_has_begun_to_arrive_is_the_last_of_its_connection() -> None:
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    with started(app) as server, Wire(server.port) as wire:
        wire.send(request("/")[:10])
        connections = server.server.connections.open
        eventually(lambda: any(c._stage for c in list(connections)))
        server.server.stop()
        eventually(lambda: all(c._last for c in list(connections)))
        wire.send(request("/")[10:] + request("/"))
        status, headers, _ = wire.response()
        assert (status, headers["connection"]) == (204, "close") and wire.ended
        eventually(lambda: server.code == 0)


def test_stopping_has_an_end() -> None:
    with started(drain_timeout=0.3) as server, spied() as spy, Wire(server.port) as wire:
        spy.hold()
        wire.send(embed())
        spy.busy()
        server.server.stop()
        assert wire.response()[0] == 503, "failed, not dropped"
        assert wire.ended
        spy.gate.set()
        eventually(lambda: server.code is not None)


def test_a_response_that_nobody_takes_does_not_hold_the_end() -> None:
    with started(drain_timeout=0.5) as server, Wire(server.port, receive_buffer=4096) as wire:
        texts = json.dumps({"texts": ["word " * 100] * 100, "colbert": True}).encode()
        wire.send(request("/encode", texts))
        connections = server.server.connections.open
        eventually(lambda: any(c.transport.get_write_buffer_size() for c in list(connections)))
        assert server.stop() == 1


LAUNCHER = """
import sys, threading
from m3fast.server.run import serve
from m3fast.server.settings import Settings

def load():
    from m3fast import Engine
    engine = Engine.from_pretrained("m3fast-tiny", dtype="float32")
    plain, warm = engine.runner.submit, []
    def submit(*args):
        if len(warm) >= 2:
            print("computing", flush=True)
            threading.Event().wait()
        warm.append(None)
        return plain(*args)
    engine.runner.submit = submit
    return engine

def stuck():
    print("loading", flush=True)
    threading.Event().wait()

settings = Settings(port=int(sys.argv[2]), drain_timeout=600.0)
sys.exit(serve({"stuck": stuck, "load": load}[sys.argv[1]], settings))
"""


@contextlib.contextmanager
def launched(how: str):
    """A server whose device, or whose loading, never comes to an end."""
    source = str(Path(listen.__file__).parents[3])
    with free_port() as port:
        child = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, how, str(port)],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": source, "PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        try:
            yield child, port
        finally:
            child.kill()
            child.wait(PATIENCE)
            child.stdout.close()


@pytest.mark.slow
def test_a_second_signal_stops_at_once() -> None:
    with launched("load") as (child, port):
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:

            def ready():
                with contextlib.suppress(httpx.TransportError):
                    return client.get("/ready").status_code == 200

            eventually(ready)
        with Wire(port) as wire:
            wire.send(embed())
            assert child.stdout.readline() == b"computing\n"
            child.send_signal(signal.SIGTERM)

            def refused():
                try:
                    Wire(port).socket.close()
                except ConnectionRefusedError:
                    return True

            eventually(refused)
            assert child.poll() is None, "it waits for the request"
            child.send_signal(signal.SIGINT)
            assert child.wait(PATIENCE) == 1, "it has 600 s to drain"


@pytest.mark.slow
def test_a_signal_while_loading_stops_at_once() -> None:
    with launched("stuck") as (child, _):
        assert child.stdout.readline() == b"loading\n"
        child.send_signal(signal.SIGTERM)
        assert child.wait(PATIENCE) == 0
