"""Responses: small ones made at once, large ones piece by piece.

A large response is made in a thread, each piece only when the client has taken those before. So it
costs little more memory than its arrays and never holds up the event loop.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from m3fast.server.http.encoders import PIECE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from starlette.types import Send

    from m3fast.server.http.context import RequestContext

# Bytes of an array that are turned into JSON on the event loop, about half a millisecond's; base64
# is faster by an order of magnitude.
INLINE_FLOATS, INLINE_BASE64 = 64 << 10, 512 << 10
JSON = (b"content-type", b"application/json")


class Reply:
    """A response whose bytes are known."""

    def __init__(
        self,
        body: bytes,
        status: int = 200,
        headers: tuple[tuple[bytes, bytes], ...] = (JSON,),
    ) -> None:
        self.body, self.status, self.headers = body, status, headers

    async def __call__(self, context: RequestContext, send: Send) -> None:
        headers = [*self.headers, (b"content-length", str(len(self.body)).encode())]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


class StreamedReply:
    """A response whose bytes are made in a thread while it is sent.

    Args:
        pieces: of the body, made one at a time.
        length: bytes of the body, None where that is not known before.
    """

    def __init__(
        self,
        pieces: Iterator[bytes],
        *,
        length: int | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (JSON,),
    ) -> None:
        self.pieces, self.length, self.headers = pieces, length, headers

    async def __call__(self, context: RequestContext, send: Send) -> None:
        loop, pool = asyncio.get_running_loop(), context.service.pool
        headers = list(self.headers)
        if self.length is not None:
            headers.append((b"content-length", str(self.length).encode()))
        # The first piece before the headers: an exception in it is still an error response.
        piece = await loop.run_in_executor(pool, next, self.pieces, b"")
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while piece:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            piece = await loop.run_in_executor(pool, next, self.pieces, b"")
        await send({"type": "http.response.body", "body": b""})


def reply(pieces: Callable[[], Iterator[bytes]], size: int, inline: int = INLINE_FLOATS) -> Any:
    """A Reply, or a StreamedReply where arrays of `size` bytes are more than `inline`."""
    return Reply(b"".join(pieces())) if size <= inline else StreamedReply(gathered(pieces()))


def gathered(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Pieces joined to some of about PIECE bytes."""
    held: list[bytes] = []
    size = 0
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size >= PIECE:
            yield b"".join(held)
            held, size = [], 0
    if held:
        yield b"".join(held)
