"""A running server for tests: the whole application on a free port, in a thread or in a process.

    with running() as server:                        # in a thread of this process, a small model
        server.post("/embed", {"inputs": "a text"})  # an httpx.Response
        server.service.engine                        # the AsyncEngine; server.records: of requests

    with process("--api-key-file", "keys") as server:  # `m3fast serve` as a user starts it
        os.kill(server.pid, signal.SIGTERM); server.wait()

Both wait until /ready says yes. `running` takes any field of `Settings` as a keyword.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
from checkpoints import small_folder

from m3fast.aio.engine import AsyncEngine, BatchRecord
from m3fast.engine.engine import Engine
from m3fast.server import run
from m3fast.server.service import Service
from m3fast.server.settings import Settings
from m3fast.server.telemetry.record import RequestRecord

SHORT = 48  # tokens that a text of `short` may have
PATIENCE = 180.0  # seconds until something that should happen counts as hanging

# Each server collects and freezes all objects of its process: 0.4 s where all tests' imports are,
# for a handful of requests. Processes do it, and test_start.py looks at it.
run.gc = SimpleNamespace(collect=int, freeze=int, unfreeze=int)


class Reporter:
    """Stands in for Telemetry and keeps what it is told.

    Attributes:
        records: of finished requests; batches: that were computed; errors: (request id, error).
        events: names of what the server said of itself.
    """

    def __init__(self) -> None:
        self.records: list[RequestRecord] = []
        self.batches: list[BatchRecord] = []
        self.errors: list[tuple[str, BaseException]] = []
        self.events: list[str] = []
        self.logs = self

    def event(self, name: str, **_: Any) -> None:
        self.events.append(name)

    def finished(self, record: RequestRecord) -> None:
        self.records.append(record)

    def batch(self, record: BatchRecord) -> None:
        self.batches.append(record)

    def exception(self, request_id: str, error: BaseException) -> None:
        self.errors.append((request_id, error))

    def metrics(self, engine: AsyncEngine) -> bytes:
        return b"m3fast_test 1\n"

    def close(self) -> None:
        pass


class Server:
    """A server that runs. `client` keeps connections alive; `get` and `post` use it."""

    def __init__(self, port: int) -> None:
        self.port, self.url = port, f"http://127.0.0.1:{port}"
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE)

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.client.get(path, **more)

    def post(self, path: str, body: Any = None, **more: Any) -> httpx.Response:
        if body is not None:
            more["json"] = body
        return self.client.post(path, **more)

    def connect(self) -> socket.socket:
        """A bare connection, for what no proper client does."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def until_ready(self) -> None:
        def ready() -> bool:
            with contextlib.suppress(httpx.TransportError):
                return self.get("/ready").status_code == 200
            return False

        eventually(ready)


class ThreadServer(Server):
    """In a thread of this process.

    Attributes:
        service: `app.state.service`; its `engine` is the AsyncEngine.
        reports: a Reporter, or the telemetry that was given.
    """

    def __init__(self, server: run.Server, reports: Any) -> None:
        super().__init__(int(server.url.rsplit(":", 1)[1]))
        self._server, self.reports = server, reports

    @property
    def service(self) -> Service:
        assert self._server.app is not None
        return self._server.app.state.service

    @property
    def records(self) -> list[RequestRecord]:
        return self.reports.records

    def last_record(self, request_id: str) -> RequestRecord:
        """The record of a request, which comes a moment after its last byte."""
        found: list[RequestRecord] = []

        def there() -> bool:
            found[:] = [r for r in self.records if r.id == request_id]
            return bool(found)

        eventually(there)
        return found[-1]


class ProcessServer(Server):
    """`m3fast serve` in a process of its own; `log` is its stderr so far."""

    def __init__(self, port: int, child: subprocess.Popen[bytes], lines: list[bytes]) -> None:
        super().__init__(port)
        self.child, self.pid, self._lines = child, child.pid, lines

    @property
    def log(self) -> str:
        return b"".join(self._lines).decode(errors="replace")

    def wait(self, seconds: float = PATIENCE) -> int:
        """Its exit code."""
        return self.child.wait(seconds)


def eventually(check: Any, seconds: float = PATIENCE) -> None:
    """Wait until `check()` is true."""
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def near(found: Any, wanted: Any) -> None:
    """Equal but for rounding: in another batch, or for other outputs, sums may go another way."""
    np.testing.assert_allclose(np.float32(found), wanted, rtol=1e-5, atol=5e-6)


def load(**options: Any) -> Engine:
    """A small model in float32, the same values on every machine; batches as wide ones have."""
    given = {"device": "cpu", "dtype": "float32", "token_budget": 4096, **options}
    return Engine.from_pretrained(small_folder(), **given)


@functools.cache
def small() -> Engine:
    """One such engine per process."""
    return load()


@functools.cache
def short() -> Engine:
    """The same with another limit: a text beyond it costs little."""
    return load(max_length=SHORT)


@contextlib.contextmanager
def running(
    engine: Engine | None = None, *, telemetry: Any = None, **settings: Any
) -> Generator[ThreadServer]:
    """What `m3fast serve` runs, in a thread, over `engine` (`small` by default).

    Telemetry that is given is closed at the end.
    """
    reports = telemetry or Reporter()
    server = run.Server(lambda: engine or small(), Settings(port=0, **settings), reports)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    found = ThreadServer(server, reports)
    try:
        eventually(lambda: server.app is not None or not thread.is_alive())
        assert server.app is not None, "the server has ended"
        found.until_ready()
        yield found
    finally:
        found.client.close()
        server.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive(), "the server does not stop"


@contextlib.contextmanager
def free_port() -> Generator[int]:
    """A port that a server may listen on and that nobody else is given meanwhile.

    It stays bound here: Linux lets another socket with SO_REUSEADDR bind it too and listen.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@contextlib.contextmanager
def process(*arguments: str, environment: dict[str, str] | None = None) -> Generator[ProcessServer]:
    """`m3fast serve m3fast-tiny ARGUMENTS` on a free port, killed at the end if it still runs."""
    with free_port() as port:
        child = subprocess.Popen(
            [sys.executable, "-m", "m3fast", "serve", "m3fast-tiny", "--port", str(port),
             *arguments],
            stderr=subprocess.PIPE,
            env={**os.environ, "HF_HUB_OFFLINE": "1", **(environment or {})},
        )  # fmt: skip
        yield from _served(child, port)


def _served(child: subprocess.Popen[bytes], port: int) -> Generator[ProcessServer]:
    lines: list[bytes] = []

    def read() -> None:
        assert child.stderr is not None
        lines.extend(child.stderr)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    server = ProcessServer(port, child, lines)
    try:
        eventually(lambda: child.poll() is not None or _answers(server))
        assert child.poll() is None, server.log
        yield server
    finally:
        server.client.close()
        if child.poll() is None:
            child.kill()
        child.wait(PATIENCE)
        reader.join(PATIENCE)


def _answers(server: Server) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return server.get("/ready").status_code == 200
    return False
