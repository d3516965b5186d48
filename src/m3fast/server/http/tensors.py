"""Arrays as a safetensors file, made piece by piece."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

DTYPES = {
    "float32": "F32",
    "float16": "F16",
    "int64": "I64",
    "int32": "I32",
    "int8": "I8",
    "bool": "BOOL",
}
PIECE = 256 << 10


def pieces(arrays: dict[str, NDArray[Any]], model: str) -> Iterator[bytes]:
    """The file: header, then the arrays."""
    yield _header(arrays, model)
    for name in _order(arrays):
        raw = np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8)
        for at in range(0, len(raw), PIECE):
            yield raw[at : at + PIECE].tobytes()


def size(arrays: dict[str, NDArray[Any]], model: str) -> int:
    """Bytes of the file."""
    return len(_header(arrays, model)) + sum(array.nbytes for array in arrays.values())


def _order(arrays: dict[str, NDArray[Any]]) -> list[str]:
    """Wide elements first, as the format's own writer has it, so that each array is aligned."""
    return sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))


def _header(arrays: dict[str, NDArray[Any]], model: str) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"model": model}}
    at = 0
    for name in _order(arrays):
        array = arrays[name]
        header[name] = {
            "dtype": DTYPES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        at += array.nbytes
    text = orjson.dumps(header)
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
