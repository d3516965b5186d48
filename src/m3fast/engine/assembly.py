"""The results of batches put together: one Embeddings in input order, each output written once.

Whatever leaves the engine goes through an `Assembler`, which takes nothing that is not finite.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Self

import numpy as np
import torch

from m3fast.errors import NonFiniteError
from m3fast.model.mcls import colbert_counts
from m3fast.types import Embeddings, SparseRows, TokenVectors, join_offsets

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from m3fast.checkpoint.config import Pooling
    from m3fast.engine.options import Call
    from m3fast.runner.base import BatchResult
    from m3fast.runner.cpu import Runner
    from m3fast.types import TokenIds


class Assembler:
    """Takes in the results of batches of some texts, gives their rows in input order."""

    def __init__(
        self,
        tokens: TokenIds,
        dense_dim: int | None,
        colbert_dim: int | None,
        sparse_width: int | None,
        pooling: Pooling = "cls",
        first: int = 0,
    ) -> None:
        """Room for the texts of `tokens`; an output whose width is None is left out.

        Args:
            first: index in the call of the first of them.
        """
        self.tokens, self._first = tokens, first
        self.lengths = lengths = tokens.lengths
        self._missing = len(lengths)
        self._offsets = np.concatenate([[0], np.cumsum(colbert_counts(lengths, pooling))])
        self._dense = self._colbert = None
        self._sparse: list[SparseRows] = []
        self._sparse_width = sparse_width
        self._order: list[NDArray[np.int64]] = []
        if dense_dim is not None:
            self._dense = np.empty((len(lengths), dense_dim), np.float32)
        if colbert_dim is not None:
            self._colbert = np.empty((int(self._offsets[-1]), colbert_dim), np.float32)

    @classmethod
    def for_call(cls, runner: Runner, tokens: TokenIds, call: Call, first: int = 0) -> Self:
        """Room for what `call` asks of these texts, of which the first has this index in it."""
        weights, options, outputs = runner.weights, call.options, call.outputs
        return cls(
            tokens,
            options.width(weights.dense_size) if outputs.dense else None,
            options.width(weights.colbert_size) if outputs.colbert else None,
            runner.config.vocab_size if outputs.sparse else None,
            options.pooling,
            first,
        )

    def add(self, order: NDArray[np.int64], result: BatchResult) -> None:
        """Take in the batch made of texts `order`.

        Raises:
            NonFiniteError: an output of one of them is not finite.
        """
        if not is_finite(result):
            self._check(order, result)
        self._order.append(order)
        self._missing -= len(order)
        if self._dense is not None and result.dense is not None:
            self._dense[order] = result.dense.numpy()
        if self._colbert is not None and result.colbert is not None:
            rows = torch.from_numpy(self._colbert)
            if self._all_in_order(order):
                rows.copy_(result.colbert)
            else:
                index = torch.from_numpy(ragged_index(self._offsets, order))
                rows.index_copy_(0, index, result.colbert)
        if result.sparse is not None:
            self._sparse.append(result.sparse)

    def _all_in_order(self, order: NDArray[np.int64]) -> bool:
        return len(order) == len(self.lengths) and bool((order[1:] > order[:-1]).all())

    def _check(self, order: NDArray[np.int64], result: BatchResult) -> None:
        """Look at each value: a sum may have overflowed where no value has."""
        dense, sparse, colbert = result.dense, result.sparse, result.colbert
        if dense is not None:
            self._refuse("dense", order, ~dense.isfinite().all(1).numpy())
        if sparse is not None:
            texts = np.repeat(np.arange(len(order)), np.diff(sparse.indptr))
            bad = np.bincount(texts[~np.isfinite(sparse.values)], minlength=len(order)) > 0
            self._refuse("sparse", order, bad)
        if colbert is not None:
            texts = np.repeat(np.arange(len(order)), np.diff(self._offsets)[order])
            rows = texts[~colbert.isfinite().all(1).numpy()]
            self._refuse("colbert", order, np.bincount(rows, minlength=len(order)) > 0)

    def _refuse(self, output: str, order: NDArray[np.int64], bad: NDArray[np.bool_]) -> None:
        if bad.any():
            raise NonFiniteError(self._first + int(order[bad].min()), output)

    @property
    def done(self) -> bool:
        """Whether every text has been added."""
        return self._missing == 0

    def finish(self) -> Embeddings:
        """All of it in input order, once it is done."""
        colbert = None
        if self._colbert is not None:
            colbert = TokenVectors(self._colbert, self._offsets)
        n_tokens = self.lengths.astype(np.int32)
        return Embeddings(
            self._dense, self._finish_sparse(), colbert, n_tokens, self.tokens.truncated
        )

    def _finish_sparse(self) -> SparseRows | None:
        if self._sparse_width is None:
            return None
        if not self._sparse:
            none = np.empty(0, np.int32)
            return SparseRows(
                np.zeros(1, np.int64), none, none.astype(np.float32), self._sparse_width
            )
        if self._all_in_order(self._order[0]):
            return self._sparse[0][:]  # it may be a view of what others share
        back = np.argsort(np.concatenate(self._order))
        indptr = join_offsets([part.indptr for part in self._sparse])
        entries = ragged_index(indptr, back)
        return SparseRows(
            np.concatenate([[0], np.cumsum(np.diff(indptr)[back])]),
            np.concatenate([part.indices for part in self._sparse])[entries],
            np.concatenate([part.values for part in self._sparse])[entries],
            self._sparse_width,
        )


def is_finite(result: BatchResult) -> bool:
    """True if all values are: so is their sum only then, and it costs one pass over them."""
    if result.finite:
        return True
    dense, sparse, colbert = result.dense, result.sparse, result.colbert
    return (
        (dense is None or math.isfinite(dense.sum().item()))
        and (sparse is None or math.isfinite(sparse.values.sum()))
        and (colbert is None or result.colbert_is_finite or math.isfinite(colbert.sum().item()))
    )


def ragged_index(offsets: NDArray[np.int64], order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Row numbers of texts `order`, end to end, where text i owns offsets[i]:offsets[i + 1]."""
    starts, sizes = offsets[order], np.diff(offsets)[order]
    ends = np.cumsum(sizes)
    return np.repeat(starts - ends + sizes, sizes) + np.arange(ends[-1] if len(ends) else 0)


def join(parts: list[Embeddings]) -> Embeddings:
    """The texts of all parts, at least one, end to end. Empties the list, to hold nothing twice."""
    if len(parts) == 1:
        return parts.pop()
    first = parts[0]
    n_tokens = np.concatenate([part.n_tokens for part in parts])
    truncated = np.concatenate([part.truncated for part in parts])
    dense, sparse, colbert = None, None, None
    if first.dense is not None:
        dense = np.concatenate([part.dense for part in parts if part.dense is not None])
    if first.sparse is not None:
        rows = [part.sparse for part in parts if part.sparse is not None]
        sparse = SparseRows(
            join_offsets([r.indptr for r in rows]),
            np.concatenate([r.indices for r in rows]),
            np.concatenate([r.values for r in rows]),
            first.sparse.vocab_size,
        )
    if first.colbert is not None:
        vectors = [part.colbert for part in parts if part.colbert is not None]
        offsets = join_offsets([v.offsets for v in vectors])
        values = np.empty((int(offsets[-1]), first.colbert.values.shape[1]), np.float32)
        end = len(values)
        del first
        while vectors:  # from the back, each part freed once it is copied
            parts.pop()
            block = vectors.pop().values
            values[end - len(block) : end] = block
            end -= len(block)
        colbert = TokenVectors(values, offsets)
    parts.clear()
    return Embeddings(dense, sparse, colbert, n_tokens, truncated)
