"""Hidden states -> BGE-M3's three outputs (arXiv 2402.03216, section 3.2), packed.

    dense    h[first token], L2-normalised (or the mean, or the last token)
    sparse   relu(h . w + b) per token, the largest per token id within a text
    colbert  W h + b for every token but the first, each L2-normalised
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from m3fast.kernels.linear import linear
from m3fast.kernels.normalize import vectors_of_rows, vectors_of_tokens
from m3fast.kernels.sparse import sparse_rows
from m3fast.types import SparseRows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from m3fast.checkpoint import Linear
    from m3fast.config import Pooling
    from m3fast.types import PackedBatch


def pooled_rows(cu_seqlens: torch.Tensor, pooling: Pooling, tokens: int) -> torch.Tensor | None:
    """int64 [N], the token that stands for each text; None where it is the mean of all.

    A text without tokens, which fills up a bucket, gets the row of another.
    """
    if pooling == "cls":
        return cu_seqlens[:-1].long().clamp_(max=tokens - 1)
    return cu_seqlens[1:].long() - 1 if pooling == "last_token" else None


def dense_head(
    hidden: torch.Tensor,
    rows: torch.Tensor | None,
    cu_seqlens: torch.Tensor,
    pooling: Pooling,
    normalize: bool,
    truncate_dim: int | None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Vectors float32 [N, min(H, truncate_dim)] of hidden states [T, H], or of those of `rows`.

    Args:
        rows: those of `pooled_rows`; None where `hidden` holds them alone.
        out: where to write.
    """
    if pooling == "mean":
        lengths = cu_seqlens.diff().long()
        hidden = torch.segment_reduce(hidden.float(), "mean", lengths=lengths, unsafe=True)
    return vectors_of_rows(hidden, rows, normalize, truncate_dim, out=out)


def sparse_head(
    weights: torch.Tensor, batch: PackedBatch, dropped: Sequence[int], vocab_size: int
) -> SparseRows:
    """Lexical weights from those of tokens [T]: special ids `dropped`, zeros and NaN left out."""
    rows = sparse_rows(batch.ids, weights.cpu().numpy(), batch.cu_seqlens, dropped)
    return SparseRows(*rows, vocab_size)


def colbert_head(
    hidden: torch.Tensor,
    head: Linear,
    texts: torch.Tensor,
    cu_seqlens: torch.Tensor,
    normalize: bool,
    truncate_dim: int | None,
    space: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Vectors float32 [T - N, min(D, truncate_dim)] of all tokens but each text's first.

    Args:
        texts: int32 [T], index of each token's text.
        space: [T, D] for the product; out: where to write.
    """
    vectors = linear(hidden, head.weight, head.bias, out=space)
    return vectors_of_tokens(vectors, texts, cu_seqlens, normalize, truncate_dim, out=out)
