"""What any runner takes and gives: outputs asked for, how they are made, results of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from m3fast.types import Selection, TokenIds

if TYPE_CHECKING:
    import torch

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

    def width(self, full: int) -> int:
        """What `truncate_dim` leaves of so many dimensions."""
        return full if self.truncate_dim is None else min(full, self.truncate_dim)


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


def dummy_texts(tokens: int, length: int) -> list[Selection]:
    """Texts of `length` tokens of id 0, so many tokens in all; the last may be shorter."""
    offsets = np.append(np.arange(0, tokens, length), tokens)
    count = len(offsets) - 1
    ids = TokenIds(np.zeros(tokens, np.int32), offsets, np.zeros(count, np.bool_))
    return [Selection(ids, np.arange(count))]
