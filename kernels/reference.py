"""Every operation in plain torch, accumulated in fp32: the specification the others are held to.

Nothing here is tuned. The encoder's operations can be differentiated by autograd. Given float64
they compute in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _spans(offsets: torch.Tensor) -> list[tuple[int, int]]:
    ends: list[int] = offsets.tolist()
    return list(pairwise(ends))


def pack_ref(
    texts: Sequence[Sequence[int]], order: Sequence[int], pad_id: int | None
) -> tuple[torch.Tensor, ...]:
    """m = ids != pad; positions = cumsum(m)·m + pad, or 0, 1, 2, … where `pad_id` is None.

    Returns:
        ids, positions and texts int32 [T], cu_seqlens int32 [N + 1].
    """
    ids: list[int] = []
    positions: list[int] = []
    owners: list[int] = []
    ends = [0]
    for n, i in enumerate(order):
        row = torch.tensor(texts[i], dtype=torch.int64)
        if pad_id is None:
            positions += range(len(row))
        else:
            real = (row != pad_id).long()
            positions += (real.cumsum(0) * real + pad_id).tolist()
        ids += row.tolist()
        owners += [n] * len(row)
        ends.append(len(ids))
    return tuple(torch.tensor(v, dtype=torch.int32) for v in (ids, positions, owners, ends))


def unpad_ref(
    ids: torch.Tensor, mask: torch.Tensor, pad_id: int | None, capacity: int
) -> tuple[torch.Tensor, ...]:
    """Tokens of padded ids [B, L] where the mask is not 0, in order; dummies up to `capacity`.

    Returns:
        ids, positions and texts int32 [capacity], cu_seqlens int32 [B + 1], slots int32 [B, L].
    """
    rows, width = ids.shape
    packed = [[0] * capacity, [0] * capacity, [rows] * capacity]
    slots = [[-1] * width for _ in range(rows)]
    ends, n_tokens, n_gaps = [0], 0, 0
    for r in range(rows):
        count = 0 if pad_id is None else pad_id + 1
        for c, (token, there) in enumerate(zip(ids[r].tolist(), mask[r].tolist(), strict=True)):
            position = count if token != pad_id else token
            count += token != pad_id
            if there:
                to, n_tokens = n_tokens, n_tokens + 1
            else:
                to, n_gaps = rows * width - 1 - n_gaps, n_gaps + 1
            if to < capacity:
                slots[r][c] = to if there else -2 - to
                if there:
                    packed[0][to], packed[1][to], packed[2][to] = token, position, r
        ends.append(min(n_tokens, capacity))
    parts = (*packed, ends, slots)
    result = [torch.tensor(part, dtype=torch.int32, device=ids.device) for part in parts]
    return (*result[:4], result[4].view(rows, width))


def pack_rows_ref(hidden: torch.Tensor, slots: torch.Tensor, total: int) -> torch.Tensor:
    """packed[slots[b, l]] = hidden[b, l] where 0 <= slot < total, else 0: [total, C]."""
    packed = hidden.new_zeros(total, hidden.shape[-1])
    there = (slots >= 0) & (slots < total)
    packed[slots[there].long()] = hidden[there]
    return packed


def pad_rows_ref(packed: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """padded[b, l] = packed[slots[b, l]] where the slot is in range, else 0: [B, L, C]."""
    padded = packed.new_zeros(*slots.shape, packed.shape[-1])
    there = (slots >= 0) & (slots < len(packed))
    padded[there] = packed[slots[there].long()]
    return padded


def embed_layernorm_ref(
    ids: torch.Tensor,
    positions: torch.Tensor,
    word: torch.Tensor,
    position: torch.Tensor,
    type_row: torch.Tensor,
    weight: torch.Tensor,
    shift: torch.Tensor,
    eps: float,
) -> torch.Tensor:
    """LN(word[ids] + position[positions] + type_row)·weight + shift, [T, C]."""
    x = _wide(word)[ids.long()] + _wide(position)[positions.long()] + _wide(type_row)
    return _layernorm(x, weight, shift, eps).to(word.dtype)


def linear_ref(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """x·Wᵀ + b, [T, N]."""
    y = _wide(x) @ _wide(weight).T
    return (y if bias is None else y + _wide(bias)).to(x.dtype)


def add_layernorm_ref(
    x: torch.Tensor,
    residual: torch.Tensor,
    bias: torch.Tensor | None,
    weight: torch.Tensor,
    shift: torch.Tensor,
    eps: float,
) -> torch.Tensor:
    """LN(x + bias + residual)·weight + shift, [T, C]."""
    total = _wide(x) + _wide(residual)
    if bias is not None:
        total = total + _wide(bias)
    return _layernorm(total, weight, shift, eps).to(x.dtype)


def add_layernorm_dot_ref(
    x: torch.Tensor,
    residual: torch.Tensor,
    bias: torch.Tensor | None,
    weight: torch.Tensor,
    shift: torch.Tensor,
    eps: float,
    head_weight: torch.Tensor,
    head_bias: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """y = add_layernorm_ref(…) [T, C] and relu(y·h + b), [T], in fp32."""
    y = add_layernorm_ref(x, residual, bias, weight, shift, eps)
    return y, torch.relu(_wide(y) @ _wide(head_weight) + _wide(head_bias))


def _layernorm(
    x: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor, eps: float
) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred * torch.rsqrt(variance + eps) * _wide(weight) + _wide(shift)


def bias_gelu_ref(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """y = x + bias; y/2·(1 + erf(y/√2)), [T, F], as a new tensor."""
    y = _wide(x) + _wide(bias)
    return (y * 0.5 * (1 + torch.erf(y * math.sqrt(0.5)))).to(x.dtype)


def varlen_attention_ref(
    qkv: torch.Tensor, cu_seqlens: torch.Tensor, scale: float | None = None
) -> torch.Tensor:
    """softmax(Q·Kᵀ·scale)·V for each text and head: qkv [T, 3, H, D] -> [T, H·D]."""
    tokens, _, heads, dim = qkv.shape
    factor = dim**-0.5 if scale is None else scale
    out = [
        torch.softmax(q @ k.transpose(1, 2) * factor, -1) @ v
        for a, b in _spans(cu_seqlens)
        for q, k, v in [_wide(qkv[a:b]).permute(1, 2, 0, 3)]  # each [H, L, D]
    ]
    if not out:
        return qkv.new_empty(0, heads * dim)
    return torch.cat(out, 1).transpose(0, 1).reshape(tokens, heads * dim).to(qkv.dtype)


def attention_tiles_ref(cu_seqlens: Sequence[int], short: int, rows: int) -> torch.Tensor:
    """Row blocks of packed texts with the keys they look at, the longest first.

    A text of more than `short` tokens gives blocks of up to `rows`, each with all its keys. Others
    share a block with their neighbours while it has no more than `short`. Empty ones give none.

    Returns:
        int32 [n, 4] of row_begin, row_count, key_begin, key_count.
    """
    tiles: list[tuple[int, int, int, int]] = []
    for a, b in pairwise(cu_seqlens):
        if b - a > short:
            tiles += [(row, min(rows, b - row), a, b - a) for row in range(a, b, rows)]
            continue
        begin, count, _, keys = tiles[-1] if tiles else (0, 0, 0, 0)
        if keys > 0 and keys + b - a <= short:
            tiles[-1] = (begin, count + b - a, begin, count + b - a)
        elif b > a:
            tiles.append((a, b - a, a, b - a))
    tiles.sort(key=lambda tile: -tile[3])
    return torch.tensor(tiles, dtype=torch.int32).reshape(-1, 4)


def sparse_rows_ref(
    ids: torch.Tensor, weights: torch.Tensor, cu_seqlens: torch.Tensor, dropped: Sequence[int]
) -> list[dict[int, float]]:
    """Per text {id: max of its weights > 0}, in the order of the first such; a NaN is infinity."""
    rows: list[dict[int, float]] = []
    for a, b in _spans(cu_seqlens):
        row: dict[int, float] = {}
        for token, w in zip(ids[a:b].tolist(), weights[a:b].tolist(), strict=True):
            weight = w if w == w else math.inf
            if weight > 0 and token not in dropped:
                row[token] = max(weight, row.get(token, 0.0))
        rows.append(row)
    return rows


def sparse_csr_ref(
    ids: torch.Tensor,
    weights: torch.Tensor,
    cu_seqlens: torch.Tensor,
    texts: torch.Tensor,
    dropped: Sequence[int],
    sort: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The rows of `sparse_rows_ref` as CSR, in that order or by id; the host does not wait.

    Returns:
        indptr int32 [N + 1], indices int32 [T], values fp32 [T], set up to indptr[N].
    """
    weights = torch.where(weights.isnan(), torch.inf, weights)
    good = (weights > 0) & (torch.arange(len(ids), device=ids.device) < cu_seqlens[-1])
    for i in dropped:
        good &= ids != i
    # Text and id as one number; the stable sort leaves the first position of each in front.
    none = 2**63 - 1
    keys, order = torch.where(good, (texts.long() << 32) + ids, none).sort(stable=True)
    first = keys != none
    first[1:] &= keys[1:] != keys[:-1]
    group = (first.cumsum(0) - 1).clamp(min=0)
    values = torch.where(good, weights, 0.0)[order]
    values = torch.zeros_like(values).scatter_reduce(0, group, values, "amax")[group]
    kept = torch.zeros_like(first).scatter(0, order, first)
    indptr = F.pad(kept.cumsum(0), (1, 0))[cu_seqlens.long()].int()
    if sort:
        kept, ids = first, ids[order]
    else:
        values = torch.zeros_like(values).scatter(0, order, values)
    # What is not kept goes one beyond the end.
    place = torch.where(kept, kept.cumsum(0) - 1, len(ids))
    indices, values = (x.new_zeros(len(ids) + 1).scatter(0, place, x)[:-1] for x in (ids, values))
    return indptr, indices, values


def lexical_scores_ref(
    queries: Sequence[dict[int, float]], docs: Sequence[dict[int, float]]
) -> torch.Tensor:
    """Σ over shared ids of query weight · document weight: float64 [n, m]."""
    scores = [[sum(w * d.get(i, 0.0) for i, w in q.items()) for d in docs] for q in queries]
    return torch.tensor(scores, dtype=torch.float64).reshape(len(queries), len(docs))


def maxsim_ref(
    queries: torch.Tensor, q_offsets: torch.Tensor, docs: torch.Tensor, d_offsets: torch.Tensor
) -> torch.Tensor:
    """Mean over query tokens of the max over document tokens of q·d: fp32 [nq, nd].

    A query or document without tokens scores 0.
    """
    q_spans, d_spans = _spans(q_offsets), _spans(d_offsets)
    out = _wide(queries).new_zeros(len(q_spans), len(d_spans))
    for i, (a, b) in enumerate(q_spans):
        for j, (c, d) in enumerate(d_spans):
            if a < b and c < d:
                products = _wide(queries[a:b]) @ _wide(docs[c:d]).T
                out[i, j] = products.amax(1).mean()
    return out


def vectors_of_rows_ref(
    x: torch.Tensor, rows: torch.Tensor | None, normalize: bool, dim: int | None = None
) -> torch.Tensor:
    """x[rows, :dim], each row divided by max(its norm, 1e-12): fp32 [N, dim]."""
    v = _wide(x if rows is None else x[rows])[:, :dim]
    return v / v.square().sum(1, keepdim=True).sqrt().clamp(min=1e-12) if normalize else v


def vectors_of_tokens_ref(
    x: torch.Tensor,
    texts: torch.Tensor,
    cu_seqlens: torch.Tensor,
    normalize: bool,
    dim: int | None = None,
) -> torch.Tensor:
    """`vectors_of_rows_ref` of every token but each text's first: fp32 [T - N, dim]."""
    row = torch.arange(len(x), device=x.device)
    kept = (row < cu_seqlens[-1]) & (row != cu_seqlens[texts.long()])
    return vectors_of_rows_ref(x, kept.nonzero().view(-1), normalize, dim)
