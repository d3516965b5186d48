"""Embeddings as named arrays, and .npz files of them: joined part by part, and read back.

The layout stands in `m3fast encode --help`.
"""

from __future__ import annotations

import json
import zipfile
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy

from m3fast.errors import InputError
from m3fast.types import Embeddings, SparseRows, TokenVectors, join_offsets

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[Any]]

OFFSETS = ("sparse_indptr", "colbert_offsets")


def to_arrays(found: Embeddings, ids: Sequence[str] | None, colbert_dtype: str) -> Arrays:
    """The arrays of N texts; an output that was not computed has none."""
    arrays: Arrays = {"n_tokens": found.n_tokens, "truncated": found.truncated}
    if ids is not None:
        arrays["ids"] = np.array(ids, np.str_)
    if found.dense is not None:
        arrays["dense"] = found.dense
    if found.sparse is not None:
        arrays["sparse_indptr"] = found.sparse.indptr
        arrays["sparse_indices"] = found.sparse.indices
        arrays["sparse_values"] = found.sparse.values
    if found.colbert is not None:
        arrays["colbert_values"] = found.colbert.values.astype(colbert_dtype, copy=False)
        arrays["colbert_offsets"] = found.colbert.offsets
    return arrays


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
            # Texts have the widest part's width; numbers the one dtype they all have.
            dtype = max((dtype for _, dtype in headers), key=lambda d: d.itemsize)
            rows = [shape[0] - (name in OFFSETS) for shape, _ in headers]
            shape = (sum(rows) + (name in OFFSETS), *headers[0][0][1:])
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                _write_header(member, dtype, shape)
                for array in _pieces(parts, name):
                    member.write(np.ascontiguousarray(array, dtype).data.cast("B"))
        with archive.open("meta.npy", "w") as member:
            npy.write_array(member, np.array(json.dumps(meta)))


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
    """Embeddings and meta of a file made by `m3fast encode`.

    Raises:
        InputError: not such a file.
        OSError: it cannot be opened.
    """
    try:
        with np.load(path, allow_pickle=False) as found:
            arrays: Arrays = dict(found)
        meta: dict[str, Any] = json.loads(str(arrays["meta"]))
        sparse, colbert = None, None
        if "sparse_indptr" in arrays:
            rows = [arrays[f"sparse_{part}"] for part in ("indptr", "indices", "values")]
            sparse = SparseRows(rows[0], rows[1], rows[2], meta["vocab_size"])
        if "colbert_values" in arrays:
            colbert = TokenVectors(arrays["colbert_values"], arrays["colbert_offsets"])
        dense = arrays.get("dense")
        return Embeddings(dense, sparse, colbert, arrays["n_tokens"], arrays["truncated"]), meta
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(
            f"{path}: expected an .npz made by m3fast encode, found {reason}"
        ) from error
