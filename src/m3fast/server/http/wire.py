"""Arrays to bytes on the wire, without a Python object per number.

Small responses are made at once. Large ones are made piece by piece in a thread, each piece only
when the client has taken those before, so that a response costs little more memory than its arrays
and never holds up the event loop.
"""

from __future__ import annotations

import asyncio
import binascii
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from starlette.types import Send

    from m3fast.server.http.context import RequestContext

# Bytes of an array that are turned into JSON on the event loop, about half a millisecond's; base64
# is faster by an order of magnitude.
INLINE_FLOATS, INLINE_BASE64 = 64 << 10, 512 << 10
# Bytes of an array per piece, and of text per message.
PIECE = 256 << 10
JSON = (b"content-type", b"application/json")
BINARY = (b"content-type", b"application/octet-stream")


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


class Pieces:
    """A response made while it is sent.

    Args:
        pieces: makes its bytes, in a thread.
        length: of all of them, where it is known.
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
        # The first piece before the headers: what fails in it is still an error response.
        piece = await loop.run_in_executor(pool, next, self.pieces, b"")
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while piece:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            piece = await loop.run_in_executor(pool, next, self.pieces, b"")
        await send({"type": "http.response.body", "body": b""})


def reply(pieces: Callable[[], Iterator[bytes]], size: int, inline: int = INLINE_FLOATS) -> Any:
    """A Reply, or Pieces where arrays of `size` bytes are more than `inline`."""
    return Reply(b"".join(pieces())) if size <= inline else Pieces(gathered(pieces()))


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


def dumps(value: Any) -> bytes:
    """JSON of anything, arrays included."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def rows_json(rows: NDArray[Any]) -> Iterator[bytes]:
    """[n, d] as JSON lists of numbers, some rows at a time."""
    step = max(1, PIECE // max(1, rows.itemsize * rows.shape[1]))
    yield b"["
    for at in range(0, len(rows), step):
        part = dumps(np.ascontiguousarray(rows[at : at + step]))
        yield (b"," if at else b"") + part[1:-1]
    yield b"]"


def ragged_json(values: NDArray[Any], offsets: NDArray[np.int64]) -> Iterator[bytes]:
    """Rows of texts, text i owning rows offsets[i]:offsets[i + 1], as a list of lists of lists."""
    yield b"["
    ends = offsets.tolist()
    for i in range(len(ends) - 1):
        if i:
            yield b","
        yield from rows_json(values[ends[i] : ends[i + 1]])
    yield b"]"


def listed(items: Iterator[bytes]) -> Iterator[bytes]:
    """JSON items as a list."""
    yield b"["
    for i, item in enumerate(items):
        yield b"," + item if i else item
    yield b"]"


def base64_of(row: NDArray[Any], dtype: str = "float32", *, big: bool = False) -> bytes:
    """Its bytes as float32, float16 or bfloat16, little-endian unless big, as base64."""
    values: NDArray[Any] = row
    if dtype == "bfloat16":  # which numpy has not: the same bits as integers
        values = torch.from_numpy(row).bfloat16().view(torch.int16).numpy()
    code = {"float32": "f4", "float16": "f2", "bfloat16": "i2"}[dtype]
    raw = values.astype((">" if big else "<") + code, copy=False).tobytes()
    return binascii.b2a_base64(raw, newline=False)
