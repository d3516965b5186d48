"""A server for tests of load and faults, with a spy at its runner."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Generator
from typing import Any

from servers import PATIENCE, ThreadServer, eventually, small
from wire import Wire

from m3fast.server.run import Server
from m3fast.server.settings import Settings
from m3fast.server.telemetry.telemetry import Telemetry


class Recording(Telemetry):
    """Telemetry that keeps what it is told, and logs nowhere."""

    def __init__(self) -> None:
        with open(os.devnull, "wb") as nowhere:
            super().__init__(fd=nowhere.fileno())
        self.records: list[Any] = []
        self.batches: list[Any] = []
        self.errors: list[Any] = []

    def finished(self, record: Any) -> None:
        self.records.append(record)
        super().finished(record)

    def batch(self, record: Any) -> None:
        self.batches.append(record)
        super().batch(record)

    def exception(self, request_id: str, error: BaseException) -> None:
        self.errors.append((request_id, error))


class Started(ThreadServer):
    """A server as `m3fast serve` runs it, in a thread.

    Attributes:
        server: that server; code: its exit code once it has ended.
    """

    def __init__(self, server: Server, reports: Recording) -> None:
        super().__init__(server, reports)
        self.server = server
        self.code: int | None = None

    def stop(self) -> int:
        self.server.stop()
        eventually(lambda: self.code is not None)
        assert self.code is not None
        return self.code

    @property
    def statuses(self) -> list[int]:
        return [record.status for record in self.reports.records]


@contextlib.contextmanager
def started(app: Any = None, load: Any = small, **settings: Any) -> Generator[Started]:
    """The real server over a small model, or over `app`, any ASGI application."""
    reports, over = Recording(), threading.Event()

    def wait() -> Any:
        over.wait(PATIENCE * 5)
        raise InterruptedError

    server = Server(wait if app else load, Settings(port=0, **settings), reports)
    found = Started(server, reports)
    server._startup.app = app

    def main() -> None:
        found.code = server.run()

    thread = threading.Thread(target=main, daemon=True)
    thread.start()
    try:
        eventually(lambda: server._loop is not None)
        if app is None:
            eventually(lambda: server.app is not None and found.service.warm)
        yield found
    finally:
        found.client.close()
        server.stop()
        thread.join(PATIENCE)
        over.set()
        assert not thread.is_alive(), "the server does not stop"


class Spy:
    """Sees what a runner is given, can hold it back, and can make it fail."""

    def __init__(self, runner: Any) -> None:
        self._submit = runner.submit
        runner.submit = self.submit
        self.batches: list[tuple[list[int], Any]] = []  # lengths of the texts, outputs
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.fail: Callable[[list[int]], None] | None = None  # may raise

    def submit(self, parts: Any, outputs: Any, options: Any) -> Any:
        lengths = [int(n) for part in parts for n in part.lengths]
        self.batches.append((lengths, outputs))
        self.entered.set()
        assert self.gate.wait(PATIENCE)
        if self.fail is not None:
            self.fail(lengths)
        return self._submit(parts, outputs, options)

    @property
    def texts(self) -> int:
        return sum(len(lengths) for lengths, _ in self.batches)

    def hold(self) -> None:
        """From now on the device is busy with whatever comes next, until `gate` is set."""
        self.entered.clear()
        self.gate.clear()

    def busy(self) -> None:
        assert self.entered.wait(PATIENCE)


@contextlib.contextmanager
def spied(runner: Any = None) -> Generator[Spy]:
    """A spy at the runner of `small`, or at another."""
    runner = runner or small().runner
    spy = Spy(runner)
    try:
        yield spy
    finally:
        spy.gate.set()
        del runner.submit


def waits(server, wire: Wire, sent: bytes) -> None:
    """Send a request and see it queued."""
    load = server.service.engine
    before = load.load.texts
    wire.send(sent)
    eventually(lambda: load.load.texts > before)


def nothing_left(server) -> None:
    """No request, task or token is left over."""
    eventually(lambda: server.service.active == 0)
    eventually(lambda: not server.server.connections.tasks)
    engine = server.service.engine
    eventually(lambda: engine.load.requests == 0)
    if engine.state != "dead":
        eventually(lambda: engine.load.tokens == 0)
