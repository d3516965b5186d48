"""What any runner takes and gives: outputs asked for, how they are made, results of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from m3fast.types import TokenIds

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from m3fast.checkpoint.config import Pooling
    from m3fast.types import SparseRows

@dataclass(frozen=True, slots=True)
class Outputs:
    """Which of the three outputs to compute."""

    dense: bool
    sparse: bool
    colbert: bool


@dataclass(frozen=True, slots=True)
class HeadOptions:
    """How hidden states become vectors.

    Attributes:
        normalize: L2-normalise dense and colbert vectors.
        truncate_dim: keep this many leading dimensions of them, before normalising.
        dropped: token ids that carry no lexical weight.
    """

    pooling: Pooling
    normalize: bool
    truncate_dim: int | None
    dropped: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BatchResult:
    """Outputs of one batch in batch order, on the CPU; what was not asked for is None.

    Attributes:
        dense: float32 [N, H].
        sparse: N rows.
        colbert: float32 [T - N, D], every token but each text's first (its every CLS, for `mcls`).
        colbert_is_finite: whether that has been found out already, where they were computed;
            finite: of all three.
    """

    dense: torch.Tensor | None
    sparse: SparseRows | None
    colbert: torch.Tensor | None
    colbert_is_finite: bool = False
    finite: bool = False


def dummy_texts(tokens: int, length: int) -> tuple[TokenIds, NDArray[np.int64]]:
    """Texts of `length` tokens of id 0, so many tokens in all."""
    count = tokens // length
    offsets = np.arange(count + 1, dtype=np.int64) * length
    return TokenIds(np.zeros(count * length, np.int32), offsets, np.zeros(count, np.bool_)), (
        np.arange(count)
    )
