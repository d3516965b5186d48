"""Late interaction: MaxSim scores of packed token vectors."""

from __future__ import annotations

from itertools import pairwise
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray

from . import checks, dispatch, native

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
# Greatest number of each dtype that takes a scale per vector.
SCALED = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}

Offsets = NDArray[np.int32] | NDArray[np.int64] | torch.Tensor
Pairs = NDArray[np.int64] | torch.Tensor


def quantize_vectors(
    x: torch.Tensor, dtype: torch.dtype = torch.int8
) -> tuple[torch.Tensor, torch.Tensor]:
    """scale = max|x|/m per vector, values = round(x/scale); m is 127 for int8, 448 for float8.

    Args:
        x: fp32, fp16 or bf16 [T, d].
        dtype: torch.int8 or torch.float8_e4m3fn.

    Returns:
        values [T, d] of `dtype` and scales fp32 [T], with x ≈ values·scales[:, None]. A vector with
        a NaN or infinity has the scale NaN or infinity and values 0, so that its products are NaN.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape.
    """
    checks.tensor("x", x, 2, FLOATS)
    if dtype not in SCALED:
        raise TypeError(f"dtype: expected {' or '.join(map(str, SCALED))}, found {dtype}")
    wide = x.float()
    greatest = wide.abs().amax(1) if x.shape[1] else wide.new_zeros(len(x))
    scales = (greatest / SCALED[dtype]).clamp_min(torch.finfo(torch.float32).tiny)
    values = torch.where(scales.isfinite()[:, None], wide / scales[:, None], 0.0)
    return (values.round_() if dtype == torch.int8 else values).to(dtype), scales


@overload
def maxsim(
    queries: torch.Tensor,
    q_offsets: Offsets,
    docs: torch.Tensor,
    d_offsets: Offsets,
    pairs: Pairs | None = None,
    *,
    doc_scales: torch.Tensor | None = None,
    top_k: None = None,
) -> torch.Tensor: ...
@overload
def maxsim(
    queries: torch.Tensor,
    q_offsets: Offsets,
    docs: torch.Tensor,
    d_offsets: Offsets,
    pairs: Pairs | None = None,
    *,
    doc_scales: torch.Tensor | None = None,
    top_k: int,
) -> tuple[torch.Tensor, torch.Tensor]: ...
def maxsim(
    queries: torch.Tensor,
    q_offsets: Offsets,
    docs: torch.Tensor,
    d_offsets: Offsets,
    pairs: Pairs | None = None,
    *,
    doc_scales: torch.Tensor | None = None,
    top_k: int | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """score(q, d) = 1/|q|·Σ over query tokens i of max over document tokens j of q[i]·d[j].

    Args:
        queries: fp32, fp16 or bf16 [Tq, d], the tokens of nq queries end to end.
        q_offsets: int32 or int64 [nq + 1], query i owns rows q_offsets[i]:q_offsets[i + 1].
        docs: fp32, fp16, bf16, int8 or float8_e4m3fn [Td, d], the tokens of nd documents.
        d_offsets: int32 or int64 [nd + 1].
        pairs: int64 [P, 2] of (query, document), or None for all of them.
        doc_scales: fp32 [Td] for int8 and float8 documents, as `quantize_vectors` makes them: row j
            stands for docs[j]·doc_scales[j].
        top_k: return only the greatest scores of each query (of all pairs), with their places.

    Returns:
        fp32 [nq, nd], or [P] with `pairs`; with `top_k` the tuple (scores, indices) [..., k] of
        torch.topk, k no more than there are. A query or document without tokens scores 0. A NaN
        comes through.

        Products and sums are in fp32. On a GPU queries are first rounded to the documents' dtype;
        against 8-bit documents fp32 queries are rounded to bf16.

    Offsets and pairs are checked where they are on the CPU. On the documents' GPU they are taken as
    they are, without waiting for the device: rows beyond the last offset are ignored, and a pair
    that does not exist scores NaN. With pairs, q_offsets on the CPU save memory.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, offsets that do not fit, or a pair that does not exist.

    Source: ColBERT (arXiv 2004.12832), averaged over the query as in M3 (arXiv 2402.03216).
    """
    checks.tensor("queries", queries, 2, FLOATS)
    checks.tensor("docs", docs, 2, (*FLOATS, *SCALED))
    checks.shape("docs", docs, (docs.shape[0], queries.shape[1]))
    checks.device("docs", docs, queries)
    if docs.dtype in SCALED:
        if doc_scales is None:
            raise ValueError(
                f"doc_scales: expected fp32 [{len(docs)}] for {docs.dtype}, found None"
            )
        checks.tensor("doc_scales", doc_scales, 1, (torch.float32,))
        checks.shape("doc_scales", doc_scales, (len(docs),))
        checks.device("doc_scales", doc_scales, docs)
    elif doc_scales is not None:
        raise ValueError(f"doc_scales: expected None for {docs.dtype} documents, found a tensor")
    if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
        raise ValueError(f"top_k: expected a number from 1 on, found {top_k!r}")
    q_ends = _offsets("q_offsets", q_offsets, queries)
    d_ends = _offsets("d_offsets", d_offsets, docs)
    if isinstance(pairs, torch.Tensor):
        checks.tensor("pairs", pairs, 2, (torch.int64,))
        checks.shape("pairs", pairs, (len(pairs), 2))
        pairs = pairs.numpy() if pairs.is_cpu else pairs
    if isinstance(pairs, torch.Tensor):
        checks.device("pairs", pairs, docs)
    elif pairs is not None:
        pairs = checks.pairs(pairs, len(q_ends) - 1, len(d_ends) - 1)

    scores = _scores(queries, q_ends, docs, d_ends, pairs, doc_scales)
    return scores if top_k is None else scores.topk(min(top_k, scores.shape[-1]))


def _offsets(name: str, value: object, rows: torch.Tensor) -> NDArray[np.int64] | torch.Tensor:
    if isinstance(value, torch.Tensor) and not value.is_cpu:
        checks.tensor(name, value, 1, (torch.int32, torch.int64))
        checks.device(name, value, rows)
        if not len(value):
            raise ValueError(f"{name}: expected at least one entry, found none")
        return value
    return checks.offsets(name, value, len(rows), None)


def _scores(
    queries: torch.Tensor,
    q_ends: NDArray[np.int64] | torch.Tensor,
    docs: torch.Tensor,
    d_ends: NDArray[np.int64] | torch.Tensor,
    pairs: NDArray[np.int64] | torch.Tensor | None,
    scales: torch.Tensor | None,
) -> torch.Tensor:
    n_queries, n_docs = len(q_ends) - 1, len(d_ends) - 1
    if dispatch.takes("maxsim", docs, queries, unsupported=_unsupported(docs)):
        from .gpu.maxsim import launch_maxsim, launch_maxsim_pairs

        if not (len(queries) and len(docs) and queries.shape[1] and n_queries and n_docs):
            shape = (n_queries, n_docs) if pairs is None else (len(pairs),)
            return torch.zeros(shape, dtype=torch.float32, device=docs.device)
        narrow = docs.dtype if scales is None else queries.dtype
        narrow = torch.bfloat16 if scales is not None and narrow == torch.float32 else narrow
        packed = (queries.to(narrow).contiguous(), q_ends, docs, d_ends)
        scales = None if scales is None else scales.contiguous()
        if pairs is None:
            return launch_maxsim(*packed, scales)
        if not len(pairs):
            return torch.zeros(0, dtype=torch.float32, device=docs.device)
        on_host = isinstance(q_ends, np.ndarray)
        longest = int(np.diff(q_ends).max()) if on_host else len(queries)
        return launch_maxsim_pairs(*packed, pairs, longest, scales)
    if isinstance(q_ends, torch.Tensor):
        q_ends = checks.offsets("q_offsets", q_ends.cpu(), len(queries), None)
    if isinstance(d_ends, torch.Tensor):
        d_ends = checks.offsets("d_offsets", d_ends.cpu(), len(docs), None)
    if isinstance(pairs, torch.Tensor):
        pairs = checks.pairs(pairs.cpu().numpy(), n_queries, n_docs)
    fits = docs.is_cpu and docs.is_contiguous() and scales is None
    if fits and (lib := native.library()):
        wide = queries.float().contiguous()
        packed = wide, q_ends, docs, d_ends
        if pairs is None:
            out = torch.empty(n_queries, n_docs)
            lib.maxsim(*packed, out, native.threads())
        else:
            out = torch.empty(len(pairs))
            lib.maxsim_pairs(*packed, pairs, out, native.threads())
        return out
    if pairs is None:
        return _all_pairs(queries.float(), q_ends, docs, d_ends, scales)
    scores = [
        _all_pairs(
            queries[a:b].float(),
            np.array([0, b - a]),
            docs[c:d],
            np.array([0, d - c]),
            None if scales is None else scales[c:d],
        )
        for i, j in pairs.tolist()
        for a, b, c, d in [(q_ends[i], q_ends[i + 1], d_ends[j], d_ends[j + 1])]
    ]
    return torch.stack(scores).view(-1) if scores else queries.new_zeros(0, dtype=torch.float32)


def _unsupported(docs: torch.Tensor) -> str:
    if docs.shape[1] > 1 and docs.stride(1) != 1:
        return f"the elements of a document row are {docs.stride(1)} apart"
    if docs.dtype == torch.float8_e4m3fn and docs.is_cuda and dispatch.arch(docs.device) < 89:
        return "float8 documents need compute capability 8.9"
    return ""


def _all_pairs(
    queries: torch.Tensor,
    q_ends: NDArray[np.int64],
    docs: torch.Tensor,
    d_ends: NDArray[np.int64],
    scales: torch.Tensor | None,
) -> torch.Tensor:
    """By torch alone, on any device; queries are fp32."""
    lengths = torch.from_numpy(np.diff(q_ends))
    owner = torch.repeat_interleave(torch.arange(len(lengths)), lengths).to(queries.device)
    out = queries.new_zeros(len(lengths), len(d_ends) - 1)
    for j, (c, d) in enumerate(pairwise(d_ends.tolist())):
        if c < d:
            rows = docs[c:d].float()
            rows = rows if scales is None else rows * scales[c:d, None]
            out[:, j].index_add_(0, owner, (rows @ queries.T).amax(0))  # amax: [Tq]
    return out / lengths.clamp(min=1).to(out)[:, None]
