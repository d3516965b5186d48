"""Arrays as JSON and base64, without a Python object per number."""

from __future__ import annotations

import binascii
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

# Bytes of an array per piece, and of text per message.
PIECE = 256 << 10


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
