"""Lexical weights to CSR rows: two passes over the tokens, each with all pairs within a text."""

# pyright: basic, reportCallIssue=false
# (what @triton.jit makes of a function has no types, and takes num_warps)
from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .. import dispatch, tuning


@dataclass(frozen=True)
class SparseConfig:
    """Tiles.

    Attributes:
        rows: tokens of a program.
        keys: tokens that it compares them with at a time.
    """

    rows: int
    keys: int
    warps: int


def default_config(arch: int) -> SparseConfig:
    # By arithmetic, not measured: a lane holds 32 tokens against one key, all in 165 registers, so
    # the loop of the first pass is 6 instructions a pair with neither barrier nor shared memory.
    return SparseConfig(rows=128, keys=32, warps=4)


def candidates(arch: int) -> list[SparseConfig]:
    return [
        SparseConfig(rows, keys, warps)
        for rows in (32, 64, 128, 256)
        for keys in (32, 64)
        for warps in (1, 2, 4, 8)
        if 8 * 32 * warps <= rows * keys <= 32 * 32 * warps  # 8 to 32 pairs a lane
    ]


@functools.cache
def _config(device: torch.device, arch: int) -> SparseConfig:
    return tuning.tuned("sparse_csr", {}, default_config(arch), device)


@triton.jit
def _real(cu_seqlens, tokens, n_texts):
    """Tokens that belong to a text; those of a graph bucket's padding follow them."""
    return tl.minimum(tl.load(cu_seqlens + n_texts), tokens)


@triton.jit
def _keys(texts, cu_seqlens, start, real, n_texts, ROWS: tl.constexpr):
    """Where the texts of a program's tokens begin and end, clamped to the real tokens."""
    end = tl.maximum(tl.minimum(start + ROWS, real), 1)
    first = tl.maximum(tl.load(texts + start), 0)
    last = tl.maximum(tl.load(texts + end - 1), 0)
    lo = tl.load(cu_seqlens + tl.minimum(first, n_texts))
    hi = tl.load(cu_seqlens + tl.minimum(last, n_texts - 1) + 1)
    return tl.maximum(lo, 0), tl.minimum(hi, real)


@triton.jit(
    do_not_specialize=["tokens", "n_texts"],
    do_not_specialize_on_alignment=["ids", "weights", "cu_seqlens", "texts", "best", "counts"],
)
def sparse_best_kernel(
    ids, weights, cu_seqlens, texts, best, counts, tokens, n_texts,
    DROPPED: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """best[i] = an id's greatest weight at its first token of weight > 0 in the text, else 0."""
    start = tl.program_id(0) * ROWS
    rows = start + tl.arange(0, ROWS)
    real = _real(cu_seqlens, tokens, n_texts)
    if start >= real:
        return
    token = tl.load(ids + rows, mask=rows < real, other=0)
    text = tl.load(texts + rows, mask=rows < real, other=-1)
    lo, hi = _keys(texts, cu_seqlens, start, real, n_texts, ROWS)
    # Reduced once, after the loop: until then each lane keeps its own keys' results.
    least = tl.full([ROWS, KEYS], 2147483647, tl.int32)
    most = tl.zeros([ROWS, KEYS], tl.float32)
    for begin in tl.range(lo, hi, KEYS):
        keys = begin + tl.arange(0, KEYS)
        w = tl.load(weights + keys, mask=keys < hi, other=0.0)
        k = tl.load(ids + keys, mask=keys < hi, other=0)
        t = tl.load(texts + keys, mask=keys < hi, other=-2)
        w = tl.where(w == w, w, float("inf"))  # a NaN is not left out in silence
        t = tl.where(w > 0, t, -2)
        same = (token[:, None] == k[None, :]) & (text[:, None] == t[None, :])
        least = tl.minimum(least, tl.where(same, keys[None, :], 2147483647))
        most = tl.maximum(most, tl.where(same, w[None, :], 0.0))
    kept = (rows < real) & (rows == tl.min(least, 1))
    for i in tl.static_range(len(DROPPED)):
        kept = kept & (token != DROPPED[i])
    tl.store(best + rows, tl.where(kept, tl.max(most, 1), 0.0), mask=rows < real)
    tl.store(counts + tl.program_id(0), tl.sum(kept.to(tl.int32), 0))


@triton.jit(
    do_not_specialize=["tokens", "n_texts"],
    do_not_specialize_on_alignment=["ids", "cu_seqlens", "texts", "best", "counts", "out"],
)
def sparse_scatter_kernel(
    ids, cu_seqlens, texts, best, counts, out, tokens, n_texts,
    SORT: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Tokens with a `best` close up, in order or each text's by id; indptr counts them."""
    block = tl.program_id(0)
    start = block * ROWS
    rows = start + tl.arange(0, ROWS)
    real = _real(cu_seqlens, tokens, n_texts)
    if (start >= real) & (block > 0):
        return
    # The counts of all blocks before; to scan them apart would take a third launch.
    lane = tl.arange(0, 8 * ROWS)
    sums = tl.zeros([8 * ROWS], tl.int32)
    for begin in tl.range(0, block, 8 * ROWS):
        sums += tl.load(counts + begin + lane, mask=begin + lane < block, other=0)
    base = tl.sum(sums, 0)

    value = tl.load(best + rows, mask=rows < real, other=0.0)
    kept = (value > 0).to(tl.int32)
    place = base + tl.cumsum(kept, 0) - kept
    token = tl.load(ids + rows, mask=rows < real, other=0)
    if SORT:  # from its rank by position in its text to that by id
        text = tl.load(texts + rows, mask=rows < real, other=-1)
        lo, hi = _keys(texts, cu_seqlens, start, real, n_texts, ROWS)
        shift = tl.zeros([ROWS, KEYS], tl.int32)
        for begin in tl.range(lo, hi, KEYS):
            keys = begin + tl.arange(0, KEYS)
            w = tl.load(best + keys, mask=keys < hi, other=0.0)
            k = tl.load(ids + keys, mask=keys < hi, other=0)
            t = tl.load(texts + keys, mask=keys < hi, other=-2)
            t = tl.where(w > 0, t, -2)
            smaller = (k[None, :] < token[:, None]).to(tl.int32)
            before = (keys[None, :] < rows[:, None]).to(tl.int32)
            shift += tl.where(text[:, None] == t[None, :], smaller - before, 0)
        place += tl.sum(shift, 1)
    indices = out + n_texts.to(tl.int64) + 1
    values = indices + tokens.to(tl.int64)
    tl.store(indices + place, token, mask=value > 0)
    tl.store(values + place, value.to(tl.int32, bitcast=True), mask=value > 0)

    # The texts that begin here, and after the last token all that are left.
    first = tl.load(texts + start - 1, mask=start > 0, other=-1) + 1
    last = tl.load(texts + start + ROWS - 1, mask=start + ROWS < real, other=0)
    last = tl.where(start + ROWS < real, tl.minimum(last, n_texts), n_texts)
    for begin in tl.range(tl.maximum(first, 0), last + 1, 32):
        n = begin + tl.arange(0, 32)
        at = tl.load(cu_seqlens + n, mask=n <= last, other=0)
        before = tl.sum(tl.where(rows[None, :] < at[:, None], kept[None, :], 0), 1)
        tl.store(out + n, base + before, mask=n <= last)


def launch_sparse_csr(
    ids: torch.Tensor,
    weights: torch.Tensor,
    cu_seqlens: torch.Tensor,
    texts: torch.Tensor,
    dropped: tuple[int, ...],
    sort: bool,
    out: torch.Tensor,
    config: SparseConfig | None = None,
) -> None:
    """Fill `out`, as `sparse_csr` lays it out; takes 4 bytes a token from torch's allocator."""
    tokens, n_texts = len(ids), len(cu_seqlens) - 1
    if not tokens:
        out[: n_texts + 1].zero_()
        return
    config = config or _config(ids.device, dispatch.arch(ids.device))
    blocks = -(-tokens // config.rows)
    grid = (blocks,)
    space = torch.empty(tokens + blocks, dtype=torch.int32, device=ids.device)
    best, counts = space[:tokens].view(torch.float32), space[tokens:]
    sparse_best_kernel[grid](
        ids, weights, cu_seqlens, texts, best, counts, tokens, n_texts,
        DROPPED=dropped, ROWS=config.rows, KEYS=config.keys, num_warps=config.warps,
    )  # fmt: skip
    sparse_scatter_kernel[grid](
        ids, cu_seqlens, texts, best, counts, out, tokens, n_texts,
        SORT=sort, ROWS=config.rows, KEYS=config.keys, num_warps=config.warps,
    )  # fmt: skip
