"""HTTP/1.1 in bytes: a client that may misbehave, requests, a certificate, and a trivial app."""

from __future__ import annotations

import asyncio
import socket
import struct
import subprocess
import threading
from pathlib import Path

from servers import PATIENCE


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


def reset(wire: Wire) -> None:
    """Vanish as a process that is killed does."""
    wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wire.socket.close()


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


class EchoApp:
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
