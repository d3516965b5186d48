"""Where the parts of a batch lie in the two buffers that cross the bus: one in, one out.

One copy each way for everything: `Layout` says where in a buffer of 4-byte words each part begins,
and cuts the host's and the device's buffer alike. A layout may be roomier than its batch: a
CUDA graph reads a bucket of fixed size whatever the batch in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from m3fast.kernels.sparse import csr_entries

if TYPE_CHECKING:
    from collections.abc import Sequence


def _split(buffer: torch.Tensor, sizes: Sequence[int]) -> list[torch.Tensor]:
    """Consecutive parts of a buffer, each begun at a multiple of 16 bytes."""
    starts = accumulate((_aligned(size) for size in sizes), initial=0)
    return [buffer[start : start + size] for start, size in zip(starts, sizes, strict=False)]


def _aligned(size: int) -> int:
    return -size // 4 * -4


@dataclass(frozen=True, slots=True)
class Inputs:
    """int32 parts of a batch: T tokens, N texts, the attention kernel's tiles."""

    tokens: int
    texts: int
    tiles: int

    def _sizes(self) -> tuple[int, ...]:
        return self.tokens, self.tokens, self.tokens, self.texts + 1, 4 * self.tiles

    @property
    def words(self) -> int:
        return sum(map(_aligned, self._sizes()))

    def split(self, buffer: torch.Tensor) -> list[torch.Tensor]:
        """ids [T], positions [T], texts [T], cu_seqlens [N + 1], tiles [tiles, 4]."""
        *parts, tiles = _split(buffer, self._sizes())
        return [*parts, tiles.view(-1, 4)]


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
        return sum(map(_aligned, self._sizes()))

    def split(self, buffer: torch.Tensor) -> list[torch.Tensor]:
        """dense [N, width], csr int32 words, the sum [1] of colbert, colbert [rows, width]."""
        dense, csr, check, colbert = _split(buffer, self._sizes())
        return [
            dense.view(self.texts, self.dense),
            csr.view(torch.int32),
            check,
            colbert.view(self.rows, self.colbert),
        ]
