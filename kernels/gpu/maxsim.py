"""MaxSim over packed rows, in two steps: the best product of each query token, then means.

Documents are cut into tiles of consecutive rows, wherever texts begin or end, so no tile has
padding and long documents are shared out by themselves. A tile's products are reduced once per
document in it, and tiles of one document meet in an atomic maximum. That runs on int32 keys in the
order of the fp32 values, above all of which stands NaN: the result depends on no order of arrival.
"""

# pyright: basic, reportCallIssue=false, reportGeneralTypeIssues=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from .maxsim_config import MaxsimConfig, config_for
from .maxsim_offsets import Offsets, first_documents, upload

LOWEST = tl.constexpr(-(2**31))  # below every key
HIGHEST = tl.constexpr(2**31 - 1)  # NaN
SLICE = 2048  # query tokens in one pass over the documents: those of d = 1024 fill 4 MiB of L2
WORKSPACE = 1 << 26  # int32 keys in one pass, 256 MiB
PROGRAMS = 512  # about four for each multiprocessor, so that short lists of pairs fill the device
MEAN_ROWS, MEAN_COLS = 16, 32


@triton.jit
def _span(offsets, i, rows):
    """Start and end of text i: between them no row outside [0, rows), whatever the offsets say."""
    return tl.maximum(tl.load(offsets + i), 0), tl.minimum(tl.load(offsets + i + 1), rows)


@triton.jit
def _widen(x, dtype: tl.constexpr):
    """8-bit documents as the queries' dtype, exactly, by instructions that run at full rate."""
    if x.dtype == tl.int8:
        # 1024 + (x + 128) in fp16 is 0x6400 with x + 128 in its low byte.
        bits = (x.to(tl.uint8, bitcast=True) ^ 0x80).to(tl.uint16) | 0x6400
        x = bits.to(tl.float16, bitcast=True) - 1152.0
    elif x.dtype.is_fp8():
        x = x.to(tl.float16)
    if x.dtype == tl.float16 and dtype == tl.bfloat16:
        x = x.to(tl.float32)
    return x.to(dtype)


@triton.jit
def _products(
    docs, queries, scales, row, row_end, token, token_end, doc_stride,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    TMA: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """Products from `row` and `token` on: fp32 [BLOCK_D, BLOCK_Q]."""
    depth = tl.arange(0, BLOCK_K)
    rows = row + tl.arange(0, BLOCK_D).to(tl.int64)
    tokens = token + tl.arange(0, BLOCK_Q).to(tl.int64)
    acc = tl.zeros([BLOCK_D, BLOCK_Q], tl.float32)
    for k in range(0, DIM, BLOCK_K):
        if TMA:
            d = docs.load([row, k])
            q = queries.load([token, k])
        else:
            d_mask = (rows < row_end)[:, None]
            q_mask = (tokens < token_end)[:, None]
            if DIM % BLOCK_K != 0:
                d_mask &= (k + depth < DIM)[None, :]
                q_mask &= (k + depth < DIM)[None, :]
            d_at = docs + rows[:, None] * doc_stride + (k + depth)[None, :]
            q_at = queries + tokens[:, None] * DIM + (k + depth)[None, :]
            d = tl.load(d_at, mask=d_mask, other=0.0)
            q = tl.load(q_at, mask=q_mask, other=0.0)
        acc = tl.dot(_widen(d, q.dtype), q.T, acc, input_precision="ieee")
    if SCALED:
        acc *= tl.load(scales + rows, mask=rows < row_end, other=0.0)[:, None]
    return acc


@triton.jit
def _greater(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _best(products, own):
    """Key of each query token's greatest product among the document rows `own`: int32 [BLOCK_Q]."""
    best = tl.reduce(tl.where(own[:, None], products, -float("inf")), 0, _greater)
    bits = best.to(tl.int32, bitcast=True)
    return tl.where(best != best, HIGHEST, bits ^ ((bits >> 31) & HIGHEST))


@triton.jit(do_not_specialize=["n_docs", "d_rows", "q_rows", "q_tiles"])
def maxsim_kernel(
    docs, queries, scales, d_offsets, firsts, best, n_docs, d_rows, q_rows, q_tiles, doc_stride,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    TMA: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """best[doc, token] = max(best[doc, token], key of its best product in this tile)."""
    # Query tiles of one document tile run side by side: the second finds it in L2.
    tile = tl.program_id(0) // q_tiles
    row = tile * BLOCK_D
    token = tl.program_id(0) % q_tiles * BLOCK_Q
    doc = tl.load(firsts + tile)
    if doc < n_docs:
        products = _products(
            docs, queries, scales, row, d_rows, token, q_rows, doc_stride,
            DIM, BLOCK_D, BLOCK_Q, BLOCK_K, TMA, SCALED,
        )  # fmt: skip
        rows = row + tl.arange(0, BLOCK_D)
        tokens = token + tl.arange(0, BLOCK_Q)
        start = tl.load(d_offsets + doc)
        while (doc < n_docs) & (start < row + BLOCK_D):
            end = tl.minimum(tl.load(d_offsets + doc + 1), d_rows)
            if end > start:
                own = (rows >= start) & (rows < end)
                top = _best(products, own)
                at = best + doc.to(tl.int64) * q_rows + tokens
                tl.atomic_max(at, top, mask=tokens < q_rows, sem="relaxed")
            doc += 1
            start = end


@triton.jit(do_not_specialize=["n_queries", "n_docs", "q_rows", "d_rows", "width", "splits"])
def maxsim_pairs_kernel(
    docs, queries, scales, q_offsets, d_offsets, pairs, best,
    n_queries, n_docs, q_rows, d_rows, width, splits, doc_stride,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    SCALED: tl.constexpr,
):  # fmt: skip
    """best[pair, token of its query], over each `splits`-th tile of the document."""
    pair = tl.program_id(0) // splits
    query = tl.load(pairs + 2 * pair)
    doc = tl.load(pairs + 2 * pair + 1)
    if (query >= 0) & (query < n_queries) & (doc >= 0) & (doc < n_docs):
        q_start, q_end = _span(q_offsets, query, q_rows)
        d_start, d_end = _span(d_offsets, doc, d_rows)
        d_start += tl.program_id(0) % splits * BLOCK_D
        if d_start < d_end:
            for token in range(q_start, q_end, BLOCK_Q):
                top = tl.full([BLOCK_Q], LOWEST, tl.int32)
                for row in range(d_start, d_end, splits * BLOCK_D):
                    products = _products(
                        docs, queries, scales, row, d_end, token, q_end, doc_stride,
                        DIM, BLOCK_D, BLOCK_Q, BLOCK_K, False, SCALED,
                    )  # fmt: skip
                    own = row + tl.arange(0, BLOCK_D) < d_end
                    top = tl.maximum(top, _best(products, own))
                tokens = token + tl.arange(0, BLOCK_Q)
                at = best + pair.to(tl.int64) * width + tokens - q_start
                tl.atomic_max(at, top, mask=tokens < q_end, sem="relaxed")


@triton.jit(
    do_not_specialize=["n_rows", "n_queries", "n_docs", "q_rows", "d_rows", "first", "width"]
)
def maxsim_mean_kernel(
    best, scores, q_offsets, d_offsets, pairs,
    n_rows, n_queries, n_docs, q_rows, d_rows, first, width,
    PAIRS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Means of best [n_rows, width], whose rows are documents or pairs.

    For documents the columns are the query tokens from `first` on, and later passes add to the
    scores of the first. For pairs they are the tokens of the pair's own query.
    """
    if PAIRS:
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        query = tl.load(pairs + 2 * row, mask=row < n_rows, other=0)
        doc = tl.load(pairs + 2 * row + 1, mask=row < n_rows, other=0)
        at = scores + row
    else:
        row = tl.program_id(0) // n_queries * ROWS + tl.arange(0, ROWS)
        query = tl.program_id(0) % n_queries + tl.zeros([ROWS], tl.int64)
        doc = row.to(tl.int64)
        at = scores + query * n_rows + row
    exists = (query >= 0) & (query < n_queries) & (doc >= 0) & (doc < n_docs)
    start, end = _span(q_offsets, tl.where(exists, query, 0), q_rows)
    d_start, d_end = _span(d_offsets, tl.where(exists, doc, 0), d_rows)
    low = tl.zeros_like(start) if PAIRS else tl.maximum(start - first, 0)
    high = end - start if PAIRS else tl.minimum(end - first, width)
    total = tl.zeros([ROWS], tl.float32)
    for step in range(0, tl.max(high - low, 0), COLS):
        cols = (low + step)[:, None] + tl.arange(0, COLS)[None, :]
        mask = (cols < high[:, None]) & (row < n_rows)[:, None]
        key = tl.load(best + row.to(tl.int64)[:, None] * width + cols, mask=mask, other=0)
        value = (key ^ ((key >> 31) & HIGHEST)).to(tl.float32, bitcast=True)
        total += tl.sum(value, 1)
    mean = tl.where(d_end > d_start, total / tl.maximum(end - start, 1), 0.0)
    # No `(row < n_rows) & (first > 0)`: Triton 3.9's interpreter refuses a mask of a bool scalar.
    mean += tl.load(at, mask=row < tl.where(first > 0, n_rows, 0), other=0.0)
    tl.store(at, tl.where(exists, mean, float("nan")), mask=row < n_rows)


def tokens_at_once(tokens: int, n_docs: int) -> int:
    """Query tokens in each of equal passes whose keys fit the workspace, but 32 at least."""
    limit = max(min(SLICE, WORKSPACE // n_docs) // 32 * 32, 32)
    passes = -(-tokens // limit)
    return -(-tokens // (32 * passes)) * 32


def launch_maxsim(
    queries: torch.Tensor,
    q_offsets: Offsets,
    docs: torch.Tensor,
    d_offsets: Offsets,
    scales: torch.Tensor | None = None,
    config: MaxsimConfig | None = None,
) -> torch.Tensor:
    """Scores of all pairs, fp32 [nq, nd]; queries contiguous, offsets int64.

    Offsets on the host leave less for the device to do.
    """
    n_queries, n_docs = len(q_offsets) - 1, len(d_offsets) - 1
    scores = torch.empty(n_queries, n_docs, dtype=torch.float32, device=docs.device)
    step = tokens_at_once(len(queries), n_docs)
    passes = [(first, queries[first : first + step]) for first in range(0, len(queries), step)]
    configs = [config or config_for(docs, part, len(part), False) for _, part in passes]
    blocks = sorted({c.block_d for c in configs})
    firsts = [first_documents(d_offsets, len(docs), block) for block in blocks]
    q_offsets, d_offsets, *firsts = upload(docs.device, q_offsets, d_offsets, *firsts)
    for (first, part), c in zip(passes, configs, strict=True):
        best = torch.full((n_docs, len(part)), LOWEST.value, dtype=torch.int32, device=docs.device)
        q_tiles = triton.cdiv(len(part), c.block_q)
        maxsim_kernel[(triton.cdiv(len(docs), c.block_d) * q_tiles,)](
            TensorDescriptor.from_tensor(docs, [c.block_d, c.block_k]) if c.tma else docs,
            TensorDescriptor.from_tensor(part, [c.block_q, c.block_k]) if c.tma else part,
            scales, d_offsets, firsts[blocks.index(c.block_d)], best,
            n_docs, len(docs), len(part), q_tiles, docs.stride(0),
            DIM=docs.shape[1], BLOCK_D=c.block_d, BLOCK_Q=c.block_q, BLOCK_K=c.block_k, TMA=c.tma,
            SCALED=scales is not None, num_warps=c.warps, num_stages=c.stages,
        )  # fmt: skip
        maxsim_mean_kernel[(triton.cdiv(n_docs, MEAN_ROWS) * n_queries,)](
            best, scores, q_offsets, d_offsets, None,
            n_docs, n_queries, n_docs, len(queries), len(docs), first, len(part),
            PAIRS=False, ROWS=MEAN_ROWS, COLS=MEAN_COLS, num_warps=4,
        )  # fmt: skip
    return scores


def launch_maxsim_pairs(
    queries: torch.Tensor,
    q_offsets: Offsets,
    docs: torch.Tensor,
    d_offsets: Offsets,
    pairs: Offsets,
    longest: int,
    scales: torch.Tensor | None = None,
    config: MaxsimConfig | None = None,
) -> torch.Tensor:
    """Scores of `pairs` [P, 2], fp32 [P]; no query has more than `longest` tokens."""
    n_queries, n_docs = len(q_offsets) - 1, len(d_offsets) - 1
    q_offsets, d_offsets, pairs = upload(docs.device, q_offsets, d_offsets, pairs)
    scores = torch.empty(len(pairs), dtype=torch.float32, device=docs.device)
    c = config or config_for(docs, queries, -(-len(queries) // n_queries), True)
    step = max(WORKSPACE // longest // 4 * 4, 4)  # each part of `scores` on 16 bytes
    for first in range(0, len(pairs), step):
        part, out = pairs[first : first + step], scores[first : first + step]
        best = torch.full((len(part), longest), LOWEST.value, dtype=torch.int32, device=docs.device)
        splits = min(max(PROGRAMS // len(part), 1), 64)
        sizes = (n_queries, n_docs, len(queries), len(docs))
        maxsim_pairs_kernel[(len(part) * splits,)](
            docs, queries, scales, q_offsets, d_offsets, part, best, *sizes, longest, splits,
            docs.stride(0), DIM=docs.shape[1], BLOCK_D=c.block_d, BLOCK_Q=c.block_q,
            BLOCK_K=c.block_k, SCALED=scales is not None, num_warps=c.warps, num_stages=c.stages,
        )  # fmt: skip
        maxsim_mean_kernel[(triton.cdiv(len(part), MEAN_ROWS),)](
            best, out, q_offsets, d_offsets, part, len(part), *sizes, 0, longest,
            PAIRS=True, ROWS=MEAN_ROWS, COLS=MEAN_COLS, num_warps=4,
        )  # fmt: skip
    return scores
