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


def pooled_rows(cu_seqlens: torch.Tensor, pooling: Pooling) -> torch.Tensor | None:
    """int64 [N], the token that stands for each text; None where it is the mean of all."""
    if pooling == "cls":
        return cu_seqlens[:-1].long()
    return cu_seqlens[1:].long() - 1 if pooling == "last_token" else None


def pool(
    hidden: torch.Tensor, rows: torch.Tensor | None, cu_seqlens: torch.Tensor
) -> torch.Tensor:
    """[N, H] of hidden states [T, H]: the rows of `pooled_rows`, or each text's mean."""
    if rows is not None:
        return hidden[rows]
    return torch.segment_reduce(hidden.float(), "mean", lengths=cu_seqlens.diff().long())


def dense_head(pooled: torch.Tensor, normalize: bool, truncate_dim: int | None) -> torch.Tensor:
    """Vectors float32 [N, min(H, truncate_dim)] of pooled hidden states [N, H]."""
    return _finish(pooled.float(), normalize, truncate_dim)


def sparse_head(
    weights: torch.Tensor, batch: PackedBatch, dropped: Sequence[int], vocab_size: int
) -> SparseRows:
    """Lexical weights from those of tokens [T]: special ids `dropped`, zeros and NaN left out."""
    rows = sparse_rows(batch.ids, weights.cpu().numpy(), batch.cu_seqlens, dropped)
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
