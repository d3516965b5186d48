"""Hidden states -> BGE-M3's three outputs (arXiv 2402.03216, section 3.2), packed.

    dense    h[first token], L2-normalised (or the mean, the last token, the mean of all CLS)
    sparse   relu(h . w + b) per token, the largest per token id within a text
    colbert  W h + b for every token but the CLS tokens, each L2-normalised
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from m3fast.kernels.linear import linear
from m3fast.kernels.normalize import vectors_of_rows, vectors_of_tokens
from m3fast.kernels.sparse import sparse_rows
from m3fast.model.mcls import CLS_EVERY, cls_counts
from m3fast.types import SparseRows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from m3fast.checkpoint.config import Pooling
    from m3fast.checkpoint.weights import Linear
    from m3fast.types import PackedBatch


def pooled_rows(
    cu_seqlens: torch.Tensor, pooling: Pooling, tokens: int, most: int = 0
) -> torch.Tensor | None:
    """int64 [N], the token that stands for each text; None where it is the mean of all.

    For `mcls` int64 [most], every CLS of every text, in order. A text without tokens, which fills
    up a bucket, gets the row of another, and so does what is left of `most`.
    """
    if pooling == "mcls":
        counts = cls_counts(cu_seqlens.diff())
        ends = counts.cumsum(0)
        # No size depends on a value here, so that a GPU's graph can hold it.
        number = torch.arange(most, device=ends.device)
        text = torch.searchsorted(ends, number, right=True).clamp_(max=len(ends) - 1)
        place = (number - (ends - counts)[text]) * CLS_EVERY
        return (cu_seqlens[text] + place).clamp_(max=tokens - 1)
    if pooling == "cls":
        return cu_seqlens[:-1].long().clamp_(max=tokens - 1)
    return cu_seqlens[1:].long() - 1 if pooling == "last_token" else None


def word_rows(
    texts: torch.Tensor, cu_seqlens: torch.Tensor, pooling: Pooling, most: int
) -> torch.Tensor | None:
    """int64 [most], the tokens that `mcls` leaves a multi-vector: all but every CLS, in order.

    None for another pooling, where these are all but the first of each text. What is left of
    `most` are rows that belong to no text.
    """
    if pooling != "mcls":
        return None
    token = torch.arange(len(texts), device=texts.device)
    kept = (token - cu_seqlens[texts.long()]) % CLS_EVERY != 0
    place = torch.where(kept, kept.cumsum(0) - 1, most)  # each CLS goes where nobody looks
    return token.new_zeros(most + 1).scatter_(0, place, token)[:most]


def dense_head(
    hidden: torch.Tensor,
    rows: torch.Tensor | None,
    cu_seqlens: torch.Tensor,
    pooling: Pooling,
    normalize: bool,
    truncate_dim: int | None,
    out: torch.Tensor | None = None,
    modules: Sequence[torch.nn.Module] = (),
) -> torch.Tensor:
    """Vectors float32 [N, min(H, truncate_dim)] of hidden states [T, H], or of those of `rows`.

    Args:
        rows: those of `pooled_rows`; None where `hidden` holds them alone.
        out: where to write.
        modules: applied to the pooled vectors in fp32 before anything else; H is what they give.
    """
    if pooling in ("mean", "mcls"):
        lengths = cu_seqlens.diff().long()
        if pooling == "mcls":
            lengths = cls_counts(lengths)
        hidden, rows = hidden if rows is None else hidden[rows], None
        hidden = torch.segment_reduce(hidden.float(), "mean", lengths=lengths, unsafe=True)
    if modules:
        hidden, rows = (hidden if rows is None else hidden[rows]).float(), None
    for module in modules:
        hidden = module(hidden)
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
    rows: torch.Tensor | None = None,
) -> torch.Tensor:
    """Vectors float32 [T - N, min(D, truncate_dim)] of all tokens but each text's first.

    Args:
        texts: int32 [T], index of each token's text.
        space: [T, D] for the product; out: where to write.
        rows: those of `word_rows`, which then get the vectors [R, min(D, truncate_dim)].
    """
    vectors = linear(hidden, head.weight, head.bias, out=space)
    if rows is not None:
        return vectors_of_rows(vectors, rows, normalize, truncate_dim, out=out)
    return vectors_of_tokens(vectors, texts, cu_seqlens, normalize, truncate_dim, out=out)
