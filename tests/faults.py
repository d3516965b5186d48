"""For tests of load and faults: a server with a spy at its runner, and clients that misbehave."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from servers import PATIENCE, ThreadServer, eventually, tiny

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
def started(app: Any = None, load: Any = tiny, **settings: Any) -> Generator[Started]:
    """The real server over m3fast-tiny, or over `app`, any ASGI application."""
    reports, over = Recording(), threading.Event()

    def wait() -> Any:
        over.wait(PATIENCE * 5)
        raise InterruptedError

    server = Server(wait if app else load, Settings(port=0, **settings), reports)
    found = Started(server, reports)
    server._gate.app = app

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
    """A spy at the runner of m3fast-tiny, or at another."""
    runner = runner or tiny().runner
    spy = Spy(runner)
    try:
        yield spy
    finally:
        spy.gate.set()
        del runner.submit


class Wire:
    """A bare connection and what comes over it.

    Attributes:
        reset: the server cut it without reading what was sent.
    """

    def __init__(self, port: int, *, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(("127.0.0.1", port))
        # Joined in place: copied with each part, megabytes cost seconds, and the server its time.
        self.buffer, self.reset = bytearray(), False

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """What the server no longer takes is dropped, as by a client that does not look."""
        try:
            self.socket.sendall(data)
        except ConnectionError:
            self.reset = True

    def more(self) -> bool:
        try:
            data = self.socket.recv(1 << 16)
        except ConnectionError:
            data, self.reset = b"", True
        self.buffer += data
        return bool(data)

    def line(self) -> bytes:
        while b"\r\n" not in self.buffer:
            assert self.more(), f"cut after {bytes(self.buffer[:200])!r}"
        found = self._take(self.buffer.index(b"\r\n"))
        del self.buffer[:2]
        return found

    def _take(self, size: int) -> bytes:
        found = bytes(self.buffer[:size])
        del self.buffer[:size]
        return found

    def exactly(self, size: int) -> bytes:
        while len(self.buffer) < size:
            assert self.more(), "cut in a body"
        return self._take(size)

    def response(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers, body of the next response."""
        status = int(self.line().split(b" ")[1])
        headers: dict[str, str] = {}
        while line := self.line():
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        if headers.get("transfer-encoding") != "chunked":
            return status, headers, self.exactly(int(headers.get("content-length", 0)))
        body = b""
        while size := int(self.line(), 16):
            body += self.exactly(size)
            self.line()
        self.line()
        return status, headers, body

    @property
    def ended(self) -> bool:
        """Whether the server ends the connection, sending nothing more."""
        while not self.buffer and self.more():
            pass
        return not self.buffer


def request(
    path: str, body: bytes | None = None, *headers: str, method: str | None = None
) -> bytes:
    """An HTTP/1.1 request in bytes."""
    lines = [f"{method or ('GET' if body is None else 'POST')} {path} HTTP/1.1", "Host: x"]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join((*lines, *headers, "", "")).encode() + (body or b"")


def embed(text: str = "a text") -> bytes:
    return request("/embed", b'{"inputs": "%b"}' % text.encode())


def certificate(folder: Path) -> tuple[Path, Path]:
    """A key and a certificate of its own for 127.0.0.1."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert,
         "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, key
