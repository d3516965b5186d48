"""Late interaction: MaxSim scores of packed token vectors."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from . import checks, native

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def maxsim(
    queries: torch.Tensor,
    q_offsets: NDArray[np.int64] | torch.Tensor,
    docs: torch.Tensor,
    d_offsets: NDArray[np.int64] | torch.Tensor,
    pairs: NDArray[np.int64] | None = None,
) -> torch.Tensor:
    """score(q, d) = 1/|q|·Σ over query tokens i of max over document tokens j of q[i]·d[j].

    Args:
        queries: fp32, fp16 or bf16 [Tq, d], the tokens of nq queries end to end.
        q_offsets: int32 or int64 [nq + 1] on the CPU, query i owns rows
            q_offsets[i]:q_offsets[i + 1].
        docs: fp32, fp16 or bf16 [Td, d], the tokens of nd documents end to end.
        d_offsets: int32 or int64 [nd + 1] on the CPU.
        pairs: int64 [P, 2] of (query, document), or None for all of them.

    Returns:
        fp32 [nq, nd], or [P] with `pairs`; products and sums in fp32. A query or document
        without tokens scores 0.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, offsets that do not fit, or a pair that does not exist.

    Source: ColBERT (arXiv 2004.12832), averaged over the query as in M3 (arXiv 2402.03216).
    """
    checks.tensor("queries", queries, 2, FLOATS)
    checks.tensor("docs", docs, 2, FLOATS)
    checks.shape("docs", docs, (docs.shape[0], queries.shape[1]))
    if docs.device != queries.device:
        raise ValueError(f"docs: device {queries.device} was expected, got {docs.device}")
    q_ends = checks.offsets("q_offsets", q_offsets, len(queries), None)
    d_ends = checks.offsets("d_offsets", d_offsets, len(docs), None)
    if pairs is not None:
        pairs = checks.pairs(pairs, len(q_ends) - 1, len(d_ends) - 1)

    n_queries, n_docs = len(q_ends) - 1, len(d_ends) - 1
    if docs.is_cpu and docs.is_contiguous() and (lib := native.library()):
        wide = queries.float().contiguous()
        kind, threads, dim = native.DTYPES[docs.dtype], native.threads(), docs.shape[1]
        q, d = (wide.data_ptr(), q_ends.ctypes.data), (docs.data_ptr(), d_ends.ctypes.data)
        if pairs is None:
            out = torch.empty(n_queries, n_docs)
            lib.maxsim(*q, n_queries, *d, n_docs, dim, out.data_ptr(), kind, threads)
        else:
            out = torch.empty(len(pairs))
            rows = (pairs.ctypes.data, len(pairs))
            lib.maxsim_pairs(*q, *d, *rows, dim, out.data_ptr(), kind, threads)
        return out
    if pairs is None:
        return _all_pairs(queries.float(), q_ends, docs, d_ends)
    scores = [
        _all_pairs(queries[a:b].float(), np.array([0, b - a]), docs[c:d], np.array([0, d - c]))
        for i, j in pairs.tolist()
        for a, b, c, d in [(q_ends[i], q_ends[i + 1], d_ends[j], d_ends[j + 1])]
    ]
    return torch.stack(scores).view(-1) if scores else queries.new_zeros(0, dtype=torch.float32)


def _all_pairs(
    queries: torch.Tensor, q_ends: NDArray[np.int64], docs: torch.Tensor, d_ends: NDArray[np.int64]
) -> torch.Tensor:
    """By torch alone, on any device; queries are fp32."""
    lengths = torch.from_numpy(np.diff(q_ends))
    owner = torch.repeat_interleave(torch.arange(len(lengths)), lengths).to(queries.device)
    out = queries.new_zeros(len(lengths), len(d_ends) - 1)
    for j, (c, d) in enumerate(pairwise(d_ends.tolist())):
        if c < d:
            best = (docs[c:d].float() @ queries.T).amax(0)  # [Tq]
            out[:, j].index_add_(0, owner, best)
    return out / lengths.clamp(min=1).to(out)[:, None]
