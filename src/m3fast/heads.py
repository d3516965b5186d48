"""Hidden states -> BGE-M3's three outputs (arXiv 2402.03216, section 3.2), packed.

    dense    h[first token], L2-normalised (or the mean, or the last token)
    sparse   relu(h . w + b) per token, the largest per token id within a text
    colbert  W h + b for every token but the first, each L2-normalised
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from m3fast.kernels.sparse import sparse_rows
from m3fast.types import SparseRows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from m3fast.checkpoint import Linear
    from m3fast.config import Pooling
    from m3fast.types import PackedBatch


def dense_head(
    hidden: torch.Tensor,
    cu_seqlens: torch.Tensor,
    pooling: Pooling,
    normalize: bool,
    truncate_dim: int | None,
) -> torch.Tensor:
    """Pooled vectors float32 [N, min(H, truncate_dim)] of hidden states [T, H]."""
    starts, ends = cu_seqlens[:-1].long(), cu_seqlens[1:].long()
    if pooling == "cls":
        pooled = hidden[starts].float()
    elif pooling == "last_token":
        pooled = hidden[ends - 1].float()
    else:
        pooled = torch.segment_reduce(hidden.float(), "mean", lengths=ends - starts)
    return _finish(pooled, normalize, truncate_dim)


def sparse_head(
    hidden: torch.Tensor,
    batch: PackedBatch,
    linear: Linear,
    dropped: Sequence[int],
    vocab_size: int,
) -> SparseRows:
    """Lexical weights: special ids `dropped`, zeros and NaN left out."""
    weights = torch.relu(F.linear(hidden, linear.weight, linear.bias)).squeeze(-1)
    rows = sparse_rows(batch.ids, weights.float().cpu().numpy(), batch.cu_seqlens, dropped)
    return SparseRows(*rows, vocab_size)


def colbert_head(
    hidden: torch.Tensor,
    cu_seqlens: torch.Tensor,
    linear: Linear,
    normalize: bool,
    truncate_dim: int | None,
) -> torch.Tensor:
    """Vectors float32 [T - N, min(D, truncate_dim)] of all tokens but each text's first."""
    keep = torch.ones(len(hidden), dtype=torch.bool, device=hidden.device)
    keep[cu_seqlens[:-1].long()] = False
    vectors = F.linear(hidden[keep], linear.weight, linear.bias)
    return _finish(vectors.float(), normalize, truncate_dim)


def _finish(x: torch.Tensor, normalize: bool, truncate_dim: int | None) -> torch.Tensor:
    if truncate_dim is not None:
        x = x[..., :truncate_dim]
    return F.normalize(x, dim=-1) if normalize else x
