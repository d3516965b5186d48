"""Scores between all queries and passages of a batch, and the losses of arXiv 2402.03216, 3.3.

s_dense = q·p       s_lex = sum of w_q·w_p over shared ids       s_mul = mean_i max_j q_i·p_j
s_inter = w1·s_dense + w2·s_lex + w3·s_mul
L_x     = -log softmax(s_x / t)[positive]                            (InfoNCE)
L'_x    = -sum softmax(s_inter / t) log softmax(s_x / t)        (self-distillation)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from collections.abc import Sequence

# Products of token vectors held at once: 256 MiB in fp32, again as much in the backward pass.
PRODUCTS = 1 << 26


@dataclass(frozen=True, slots=True)
class Side:
    """Queries, or passages: outputs of n texts in any order of tokens.

    Attributes:
        dense: fp32 [n, H]; token_weights: fp32 [T]; vectors: fp32 [T, D].
        ids: int64 [T]; texts: int64 [T], whose token it is; first: bool [T], a text's first token.
    """

    dense: torch.Tensor
    token_weights: torch.Tensor
    vectors: torch.Tensor
    ids: torch.Tensor
    texts: torch.Tensor
    first: torch.Tensor


def lexical_scores(queries: Side, passages: Side, dropped: Sequence[int]) -> torch.Tensor:
    """Sum over shared ids of the largest weight of each side: fp32 [nq, np]."""
    special = torch.tensor(list(dropped), device=queries.ids.device)
    words = queries.ids[~torch.isin(queries.ids, special)].unique()
    if len(words) == 0:
        return queries.dense.new_zeros(len(queries.dense), len(passages.dense))

    def matrix(side: Side) -> torch.Tensor:
        column = torch.searchsorted(words, side.ids).clamp(max=len(words) - 1)
        there = words[column] == side.ids
        place = (side.texts * len(words) + column)[there]
        flat = side.token_weights.new_zeros(len(side.dense) * len(words))
        flat = flat.scatter_reduce(0, place, side.token_weights[there], "amax")
        return flat.view(len(side.dense), len(words))

    return matrix(queries) @ matrix(passages).T


def multi_vector_scores(queries: Side, passages: Side, bf16: bool = False) -> torch.Tensor:
    """Mean over a query's tokens but the first of the largest product: fp32 [nq, np].

    Args:
        bf16: products in bfloat16, each off by 0.002 at most; their means are in fp32.
    """
    kept = ~queries.first
    dtype = torch.bfloat16 if bf16 else queries.vectors.dtype
    q, owner = queries.vectors[kept].to(dtype), queries.texts[kept]
    kept = ~passages.first
    p, n = passages.vectors[kept].to(dtype), len(passages.dense)
    texts, order = passages.texts[kept].sort(stable=True)
    lengths = torch.bincount(texts, minlength=n)
    longest = int(lengths.max())
    places = torch.arange(len(p), device=p.device) - (lengths.cumsum(0) - lengths)[texts]
    padded = p.new_zeros(n * longest, p.shape[1]).index_copy(0, texts * longest + places, p[order])
    padded = padded.view(n, longest, -1)
    empty = torch.arange(longest, device=p.device) >= lengths[:, None]

    def largest(part: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        products = q @ part.reshape(-1, q.shape[1]).T
        # max, not amax: its backward pass writes one entry per row where amax compares them all.
        return products.view(len(q), *part.shape[:2]).masked_fill_(hidden, -2).max(2).values

    step = max(1, PRODUCTS // max(1, len(q) * longest))
    parts = list(zip(padded.split(step), empty.split(step), strict=True))
    if len(parts) == 1:
        best = largest(*parts[0])
    else:
        best = torch.cat([checkpoint(largest, *part, use_reentrant=False) for part in parts], 1)
    best = best.to(queries.vectors.dtype)
    total = best.new_zeros(len(queries.dense), n).index_add(0, owner, best)
    return total / torch.bincount(owner, minlength=len(total)).clamp(min=1)[:, None]


def contrastive_losses(
    queries: Side,
    passages: Side,
    positive: torch.Tensor,
    ignored: torch.Tensor,
    dropped: Sequence[int],
    temperature: float,
    hybrid: Sequence[float],
    bf16: bool = False,
) -> dict[str, torch.Tensor]:
    """InfoNCE of each score and of s_inter, and self-knowledge distillation from s_inter.

    Args:
        positive: int64 [nq], the passage that belongs to each query.
        ignored: bool [nq, np], passages that are no negatives of a query: its own text again.
        dropped: ids that are no words.
        bf16: of the products of token vectors.

    Returns:
        fp32 scalars: dense, sparse, colbert, hybrid, distill_dense, distill_sparse,
        distill_colbert.
    """
    scores = {
        "dense": queries.dense @ passages.dense.T,
        "sparse": lexical_scores(queries, passages, dropped),
        "colbert": multi_vector_scores(queries, passages, bf16),
    }
    inter = sum(w * s for w, s in zip(hybrid, scores.values(), strict=True))
    assert isinstance(inter, torch.Tensor)
    logs = {
        name: F.log_softmax((s / temperature).masked_fill(ignored, -1e4), 1)
        for name, s in (scores | {"hybrid": inter}).items()
    }
    losses = {name: F.nll_loss(log, positive) for name, log in logs.items()}
    teacher = logs["hybrid"].detach().exp()
    for name in scores:
        losses[f"distill_{name}"] = -(teacher * logs[name]).sum(1).mean()
    return losses


def teacher_losses(
    dense: torch.Tensor, teacher: torch.Tensor, n_queries: int, temperature: float
) -> dict[str, torch.Tensor]:
    """How far dense vectors are from an outside teacher's, and their neighbours from its.

    Args:
        dense: fp32 [n, H], queries first; teacher: fp32 [n, D], any length, any D.
        n_queries: how many are queries; 0 where all texts compare with each other.
        temperature: of the teacher's and the model's cosines in softmax.

    Returns:
        teacher_cosine, the mean of 1 - cosine (0 where D is not H), and teacher_kl.
    """
    teacher = F.normalize(teacher, dim=-1)
    split = n_queries or len(dense)
    rest = slice(0 if n_queries == 0 else n_queries, None)
    ours, theirs = (x[:split] @ x[rest].T / temperature for x in (dense, teacher))
    if n_queries == 0:  # a text is its own nearest neighbour, which teaches nothing
        itself = torch.eye(len(dense), dtype=torch.bool, device=dense.device)
        ours, theirs = ours.masked_fill(itself, -1e4), theirs.masked_fill(itself, -1e4)
    kl = F.kl_div(
        F.log_softmax(ours, 1), F.log_softmax(theirs, 1), log_target=True, reduction="sum"
    )
    cosine = dense.new_zeros(())
    if dense.shape[1] == teacher.shape[1]:
        cosine = 1 - (dense * teacher).sum(1).mean()
    return {"teacher_cosine": cosine, "teacher_kl": kl / split}
