"""The .npz files of `m3fast encode`: embeddings as named arrays, written part by part and read.

The layout stands in `m3fast encode --help`.
"""

from __future__ import annotations

import json
import zipfile
from contextlib import contextmanager
from itertools import accumulate, pairwise
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy

from m3fast.errors import InputError
from m3fast.inputs import narrowed
from m3fast.types import Embeddings, SparseRows, TokenVectors, join_offsets

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[Any]]

OFFSETS = ("ids_offsets", "sparse_indptr", "colbert_offsets")
LAYOUT = 2  # of part files; a run does not go on with parts of another layout


def stored_arrays(found: Embeddings, ids: Sequence[str] | None, colbert_dtype: str) -> Arrays:
    """`Embeddings.to_arrays` in the dtype of the file, and ids of N texts if they have some."""
    arrays = found.to_arrays()
    if found.colbert is not None:
        arrays["colbert_values"] = narrowed(found.colbert.values, colbert_dtype, "--colbert-dtype")
    if ids is not None:
        arrays["ids_values"], arrays["ids_offsets"] = pack_strings(ids)
    return arrays


def pack_strings(strings: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """N strings as UTF-8 end to end, uint8 [B], and offsets int64 [N + 1].

    numpy's own strings would all be as wide as the longest, and lose NULs at their ends.
    """
    encoded = [text.encode() for text in strings]
    offsets = accumulate(map(len, encoded), initial=0)
    values = np.frombuffer(b"".join(encoded), np.uint8)
    return values, np.fromiter(offsets, np.int64, len(encoded) + 1)


def unpack_strings(values: NDArray[np.uint8], offsets: NDArray[np.int64]) -> list[str]:
    """What `pack_strings` was given."""
    encoded = values.tobytes()
    return [encoded[start:stop].decode() for start, stop in pairwise(offsets.tolist())]


def join(parts: Sequence[Arrays]) -> Arrays:
    """Arrays of consecutive texts as arrays of all of them."""
    if len(parts) == 1:
        return parts[0]
    return {
        name: (join_offsets if name in OFFSETS else np.concatenate)([part[name] for part in parts])
        for name in parts[0]
    }


def write_npz(parts: Sequence[Path], out: IO[bytes], meta: dict[str, Any]) -> None:
    """Join the arrays of part files into one .npz, holding one array of one part at a time."""
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name in array_names(parts[0]):
            headers = [_header(part, name) for part in parts]
            dtype = headers[0][1]
            rows = [shape[0] - (name in OFFSETS) for shape, _ in headers]
            shape = (sum(rows) + (name in OFFSETS), *headers[0][0][1:])
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                _write_header(member, dtype, shape)
                for array in _pieces(parts, name):
                    member.write(np.ascontiguousarray(array, dtype).data.cast("B"))
        with archive.open("meta.npy", "w") as member:
            npy.write_array(member, np.frombuffer(json.dumps(meta).encode(), np.uint8))


def _pieces(parts: Sequence[Path], name: str) -> Iterator[NDArray[Any]]:
    base = 0
    for i, part in enumerate(parts):
        array = read_array(part, name)
        if name in OFFSETS:
            array, base = array[min(i, 1) :] + base, base + array[-1]
        if array.size:  # an empty memoryview cannot be cast
            yield array


def array_names(part: Path) -> list[str]:
    with zipfile.ZipFile(part) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def array_shape(part: Path, name: str) -> tuple[int, ...]:
    """Shape of an array in an .npz, without reading it."""
    return _header(part, name)[0]


def read_array(part: Path, name: str) -> NDArray[Any]:
    with np.load(part, allow_pickle=False) as arrays:
        return arrays[name]


def _header(part: Path, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    with zipfile.ZipFile(part) as archive, archive.open(f"{name}.npy") as member:
        npy.read_magic(member)
        shape, _, dtype = npy.read_array_header_1_0(member)
    return shape, dtype


def _write_header(out: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    header = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(out, header)


def read_npz(path: str) -> tuple[Embeddings, dict[str, Any]]:
    """Embeddings and meta of a file made by `m3fast encode`; `read_ids` has its ids.

    Raises:
        InputError: not such a file.
        OSError: it cannot be opened.
    """
    with _reading(path) as found:
        arrays: Arrays = {n: found[n] for n in found if n.partition("_")[0] != "ids"}
        text = arrays["meta"]  # numpy's string in files of earlier versions
        meta: dict[str, Any] = json.loads(text.tobytes() if text.dtype == np.uint8 else str(text))
        sparse, colbert = None, None
        if "sparse_indptr" in arrays:
            rows = [arrays[f"sparse_{part}"] for part in ("indptr", "indices", "values")]
            sparse = SparseRows(rows[0], rows[1], rows[2], meta["vocab_size"])
        if "colbert_values" in arrays:
            colbert = TokenVectors(arrays["colbert_values"], arrays["colbert_offsets"])
        dense = arrays.get("dense")
        return Embeddings(dense, sparse, colbert, arrays["n_tokens"], arrays["truncated"]), meta


def read_ids(path: str) -> list[str] | None:
    """Ids of the texts in a file made by `m3fast encode`, None if its input had none.

    Raises:
        InputError: not such a file.
        OSError: it cannot be opened.
    """
    with _reading(path) as found:
        if "ids" in found:  # by an earlier version
            return found["ids"].tolist()
        if "ids_values" in found:
            return unpack_strings(found["ids_values"], found["ids_offsets"])
        _ = found["n_tokens"]
        return None


@contextmanager
def _reading(path: str) -> Generator[Any]:
    """The arrays of an .npz; whatever is wrong in the block is an InputError that names it."""
    try:
        with np.load(path, allow_pickle=False) as found:
            yield found
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(
            f"{path}: expected an .npz made by m3fast encode, found {reason}"
        ) from error
