"""Joins the part files of `m3fast encode` into one parquet file."""

from __future__ import annotations

import json
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from m3fast.cli.store import array_names, read_array, unpack_strings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

# Of a row group. Arrow's writer takes about ten times that while it encodes one.
GROUP_BYTES = 8 << 20


def write_parquet(parts: Sequence[Path], out: IO[bytes], meta: dict[str, Any]) -> None:
    """Write all parts, holding one at a time."""
    schema = _table(parts[0]).schema.with_metadata({"m3fast": json.dumps(meta)})
    # Floats hardly repeat: a dictionary or compression would cost time and save nothing.
    with pq.ParquetWriter(out, schema, compression="none", use_dictionary=False) as writer:
        for part in parts:
            table = _table(part).replace_schema_metadata(schema.metadata)
            rows = table.num_rows * GROUP_BYTES // max(1, table.nbytes)
            writer.write_table(table, row_group_size=max(1, rows))


def _table(part: Path) -> Any:
    names = array_names(part)
    columns: dict[str, Any] = {}
    if "ids_values" in names:
        ids = unpack_strings(read_array(part, "ids_values"), read_array(part, "ids_offsets"))
        columns["id"] = pa.array(ids, pa.string())
    if "dense" in names:
        columns["dense"] = _matrix(read_array(part, "dense"))
    if "sparse_indptr" in names:
        ends = read_array(part, "sparse_indptr").astype(np.int32)
        for name in ("sparse_indices", "sparse_values"):
            columns[name] = pa.ListArray.from_arrays(ends, pa.array(read_array(part, name)))
    if "colbert_values" in names:
        ends = read_array(part, "colbert_offsets").astype(np.int32)
        vectors = _matrix(read_array(part, "colbert_values"))
        columns["colbert"] = pa.ListArray.from_arrays(ends, vectors)
    for name in ("n_tokens", "truncated"):
        columns[name] = pa.array(read_array(part, name))
    return pa.table(columns)


def _matrix(rows: NDArray[Any]) -> Any:
    """[R, D] as R lists of D numbers."""
    ends = np.arange(len(rows) + 1, dtype=np.int32) * rows.shape[1]
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(rows.reshape(-1)))
