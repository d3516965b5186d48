"""Where the parts of a batch lie in the two buffers that cross the bus: one in, one out.

One copy each way for everything: `Inputs` and `Results` say where in a buffer of 4-byte words each
part begins, and cut the host's and the device's buffer alike. There may be room for more than the
batch: a CUDA graph reads a bucket of fixed size whatever the batch in it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch

from m3fast.kernels.packing import Layout, aligned
from m3fast.kernels.sparse import csr_entries, csr_views
from m3fast.runner.base import BatchResult
from m3fast.types import SparseRows


@dataclass(frozen=True, slots=True)
class Inputs:
    """int32 parts of a batch: T packed tokens of N texts, then the attention kernel's tiles."""

    tokens: int
    texts: int
    tiles: int

    @property
    def packed(self) -> Layout:
        return Layout(self.tokens, self.texts)

    @property
    def words(self) -> int:
        return aligned(self.packed.entries) + 4 * self.tiles

    def split(self, buffer: torch.Tensor) -> list[torch.Tensor]:
        """ids [T], positions [T], texts [T], cu_seqlens [N + 1], tiles [tiles, 4]."""
        tiles = buffer[aligned(self.packed.entries) : self.words]
        return [*self.packed.split(buffer), tiles.view(-1, 4)]


@dataclass(frozen=True, slots=True)
class Results:
    """float32 parts of what comes back; a width of 0 leaves a part out.

    Attributes:
        texts: N; tokens: T; rows: of colbert, at most T.
        dense, colbert: their widths.
        sparse: whether lexical weights come back.
    """

    texts: int
    tokens: int
    rows: int
    dense: int
    sparse: bool
    colbert: int

    def _sizes(self) -> tuple[int, ...]:
        sparse = csr_entries(self.tokens, self.texts) if self.sparse else 0
        return self.texts * self.dense, sparse, int(self.colbert > 0), self.rows * self.colbert

    @property
    def words(self) -> int:
        return sum(map(aligned, self._sizes()))

    def split(self, buffer: torch.Tensor) -> list[torch.Tensor]:
        """dense [N, width], csr int32 words, the sum [1] of colbert, colbert [rows, width]."""
        sizes = self._sizes()
        starts = accumulate(map(aligned, sizes), initial=0)
        dense, csr, check, colbert = (
            buffer[start : start + size] for start, size in zip(starts, sizes, strict=False)
        )
        return [
            dense.view(self.texts, self.dense),
            csr.view(torch.int32),
            check,
            colbert.view(self.rows, self.colbert),
        ]

    def read(self, buffer: torch.Tensor, texts: int, vocab_size: int) -> BatchResult:
        """The first texts' outputs out of a buffer on the CPU: vectors as views, rows copied."""
        dense, csr, check, colbert = self.split(buffer)
        rows = None
        if self.sparse:
            indptr, indices, values = (v.numpy() for v in csr_views(csr, self.tokens, self.texts))
            count = int(indptr[texts])
            rows = SparseRows(
                indptr[: texts + 1].astype(np.int64),
                indices[:count].copy(),
                values[:count].copy(),
                vocab_size,
            )
        return BatchResult(
            dense[:texts] if self.dense else None,
            rows,
            colbert if self.colbert else None,
            all(map(math.isfinite, check.tolist())),
        )
