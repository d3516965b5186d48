"""The data types that cross rooms: token ids and packed batches in, embeddings out."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, overload

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from scipy.sparse import csr_array


@dataclass(frozen=True)
class TokenIds:
    """Token ids of N texts end to end, special tokens included.

    Attributes:
        ids: int32 [sum of lengths].
        offsets: int64 [N + 1], text i owns ids offsets[i]:offsets[i + 1].
        truncated: bool [N], True where a text had more than max_length tokens.
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    truncated: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """int64 [N], tokens of each text."""
        return np.diff(self.offsets)


@dataclass(frozen=True, slots=True)
class Selection:
    """Some texts of some token ids, in an order of their own: a batch, or a part of one.

    Attributes:
        order: int64 [M], which texts of `tokens`.
    """

    tokens: TokenIds
    order: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.order)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """int64 [M], tokens of each text."""
        offsets = self.tokens.offsets
        return offsets[1:][self.order] - offsets[self.order]


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Token ids of N texts end to end, with no padding.

    Attributes:
        ids: int32 [T], token ids.
        positions: int32 [T], rows of the position table.
        cu_seqlens: int32 [N + 1], text i owns tokens cu_seqlens[i]:cu_seqlens[i + 1].
        max_seqlen: longest text, in tokens.
        texts: int32 [T], the text each token belongs to; made from cu_seqlens if not given.
    """

    ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    cu_seqlens: NDArray[np.int32]
    max_seqlen: int
    texts: NDArray[np.int32] = field(default=None)  # pyright: ignore

    def __post_init__(self) -> None:
        if self.texts is None:  # pyright: ignore[reportUnnecessaryComparison]
            texts = np.repeat(np.arange(self.n_texts, dtype=np.int32), self.lengths)
            object.__setattr__(self, "texts", texts)

    @property
    def n_texts(self) -> int:
        return len(self.cu_seqlens) - 1

    @property
    def lengths(self) -> NDArray[np.int32]:
        """int32 [N], tokens of each text."""
        return np.diff(self.cu_seqlens)

    @property
    def n_tokens(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class SparseRows:
    """Lexical weights of N texts in CSR form.

    Within a row, token ids are unique and stand in the order of their first positive weight.

    Attributes:
        indptr: int64 [N + 1], row i owns entries indptr[i]:indptr[i + 1].
        indices: int32 [nnz], token ids.
        values: float32 [nnz], weights, all > 0.
        vocab_size: width of the matrix.
    """

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    values: NDArray[np.float32]
    vocab_size: int

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def __getitem__(self, rows: int | slice) -> SparseRows:
        """Row or slice of rows, as a copy; a single int gives one row."""
        chosen = _as_slice(rows, len(self))
        part = self.view(chosen.start, chosen.stop)
        return SparseRows(part.indptr, part.indices.copy(), part.values.copy(), self.vocab_size)

    def view(self, start: int, stop: int) -> SparseRows:
        """Rows start to stop, sharing this one's memory."""
        lo, hi = self.indptr[start], self.indptr[stop]
        return SparseRows(
            self.indptr[start : stop + 1] - lo,
            self.indices[lo:hi],
            self.values[lo:hi],
            self.vocab_size,
        )

    def to_dicts(self) -> list[dict[int, float]]:
        """One `{token id: weight}` per text, plain ints and floats."""
        ids, values, ends = self.indices.tolist(), self.values.tolist(), self.indptr.tolist()
        return [
            dict(zip(ids[a:b], values[a:b], strict=True))
            for a, b in pairwise(ends)
        ]

    def to_indices(self) -> list[list[dict[str, int | float]]]:
        """TEI's wire shape: per text a list of `{"index": id, "value": weight}`."""
        return [[{"index": i, "value": v} for i, v in row.items()] for row in self.to_dicts()]

    def to_scipy(self) -> csr_array:
        """The same matrix as a float32 `scipy.sparse.csr_array` [N, vocab_size], ids sorted."""
        from scipy.sparse import csr_array

        matrix = csr_array(
            (self.values, self.indices, self.indptr), shape=(len(self), self.vocab_size), copy=True
        )
        matrix.sort_indices()
        return matrix


@dataclass(frozen=True, slots=True)
class TokenVectors:
    """ColBERT vectors of N texts end to end, with no padding.

    Attributes:
        values: float32 or float16 [sum of rows, D].
        offsets: int64 [N + 1], text i owns rows offsets[i]:offsets[i + 1] (its tokens less CLS).
    """

    values: NDArray[np.floating]
    offsets: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """int64 [N], vectors of each text."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, rows: int) -> NDArray[np.floating]: ...
    @overload
    def __getitem__(self, rows: slice) -> TokenVectors: ...
    def __getitem__(self, rows: int | slice) -> NDArray[np.floating] | TokenVectors:
        """Vectors [n - 1, D] of one text, or a slice of texts; a copy, so it pins nothing else."""
        chosen = _as_slice(rows, len(self))
        part = self.view(chosen.start, chosen.stop)
        values = part.values.copy()
        return TokenVectors(values, part.offsets) if isinstance(rows, slice) else values

    def view(self, start: int, stop: int) -> TokenVectors:
        """Texts start to stop, sharing this one's memory."""
        lo, hi = self.offsets[start], self.offsets[stop]
        return TokenVectors(self.values[lo:hi], self.offsets[start : stop + 1] - lo)

    def __iter__(self) -> Iterator[NDArray[np.floating]]:
        return (self[i] for i in range(len(self)))


@dataclass(frozen=True, slots=True)
class Embeddings:
    """What one `encode` call returns, in input order. An output not asked for is None.

    Attributes:
        dense: float32 [N, H], L2-normalised unless the engine was told otherwise.
        sparse: lexical weights.
        colbert: one vector per token but the first (for `mcls`, but every CLS).
        n_tokens: int32 [N], tokens encoded, special tokens included.
        truncated: bool [N], True where a text was longer than max_length.
    """

    dense: NDArray[np.float32] | None
    sparse: SparseRows | None
    colbert: TokenVectors | None
    n_tokens: NDArray[np.int32]
    truncated: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.n_tokens)

    def __getitem__(self, rows: int | slice) -> Embeddings:
        """Text or slice of texts as Embeddings of its own, copied; an int keeps N = 1."""
        chosen = _as_slice(rows, len(self))
        return Embeddings(
            None if self.dense is None else self.dense[chosen].copy(),
            None if self.sparse is None else self.sparse[chosen],
            None if self.colbert is None else self.colbert[chosen],
            self.n_tokens[chosen].copy(),
            self.truncated[chosen].copy(),
        )

    def view(self, start: int, stop: int) -> Embeddings:
        """Texts start to stop, sharing this one's memory."""
        return Embeddings(
            None if self.dense is None else self.dense[start:stop],
            None if self.sparse is None else self.sparse.view(start, stop),
            None if self.colbert is None else self.colbert.view(start, stop),
            self.n_tokens[start:stop],
            self.truncated[start:stop],
        )

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Its arrays by name, as .npz files and `/encode` hold them; what is None has none."""
        arrays: dict[str, NDArray[Any]] = {"n_tokens": self.n_tokens, "truncated": self.truncated}
        if self.dense is not None:
            arrays["dense"] = self.dense
        if self.sparse is not None:
            arrays["sparse_indptr"] = self.sparse.indptr
            arrays["sparse_indices"] = self.sparse.indices
            arrays["sparse_values"] = self.sparse.values
        if self.colbert is not None:
            arrays["colbert_values"] = self.colbert.values
            arrays["colbert_offsets"] = self.colbert.offsets
        return arrays


def join_offsets(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Offsets [n_i + 1] of consecutive parts -> offsets [sum n_i + 1] of the whole."""
    sizes = np.concatenate([np.diff(p) for p in parts])
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])


def _as_slice(rows: int | slice, n: int) -> slice:
    """A contiguous slice with 0 <= start <= stop <= n.

    Raises:
        IndexError: an int out of range.
        ValueError: a slice with a step.
    """
    if isinstance(rows, slice):
        start, stop, step = rows.indices(n)
        if step != 1:
            raise ValueError(f"rows: expected a slice with step 1, found step {step}")
        return slice(start, max(start, stop))
    index = rows + n if rows < 0 else rows
    if not 0 <= index < n:
        raise IndexError(f"rows: expected one of {n}, found {rows}")
    return slice(index, index + 1)
