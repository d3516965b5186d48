"""Peers of the GPU rows, and judges against an fp32 reference computed outside the clock.

A maker raises Absent or ImportError where its peer cannot run; the row then says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.core.measure import Absent

Judge = Callable[[str, Any, Any], str]


def near(expected: torch.Tensor, tolerance: float) -> Judge:
    """A judge: every candidate's first result within tolerance · max|expected|.

    A result of None is no answer to judge, such as a copy's.
    """
    limit = tolerance * expected.abs().max().item()

    def judge(name: str, truth: Any, found: Any) -> str:
        if found is None:
            return ""
        if found.shape != expected.shape:
            return f"shape {list(found.shape)}, not {list(expected.shape)}"
        gap = (found.to(expected) - expected).abs().max().item()
        return "" if gap <= limit else f"off by {gap:.2g}, and {limit:.2g} is allowed"

    return judge


def cuda_only(device: torch.device) -> None:
    if device.type != "cuda":
        raise Absent("needs a CUDA device")


def offsets(lengths: Sequence[int]) -> np.ndarray:
    """int32 [N + 1]."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def varlen_attn(device: torch.device) -> Callable[[Any], torch.Tensor]:
    """torch's attention over packed texts; it takes Q, K and V as views of the fused product."""
    cuda_only(device)
    from torch.nn.attention.varlen import varlen_attn as attend

    def run(x: Any) -> torch.Tensor:
        q, k, v = x.qkv.unbind(1)
        return attend(q, k, v, x.ends, x.ends, x.longest, x.longest).flatten(1)

    return run


def dense_sdpa(device: torch.device, backend: SDPBackend | None = None) -> Any:
    """torch's dense attention, for texts of one length, which need no padding."""
    if backend is not None:
        cuda_only(device)

    def run(x: Any) -> torch.Tensor:
        heads, dim = x.qkv.shape[2:]
        q, k, v = x.qkv.view(-1, x.longest, 3, heads, dim).permute(2, 0, 3, 1, 4)  # [N, H, L, D]
        out = F.scaled_dot_product_attention(q, k, v)
        return out.transpose(1, 2).reshape(len(x.qkv), heads * dim)

    def with_backend(x: Any) -> torch.Tensor:
        with sdpa_kernel(backend):
            return run(x)

    return run if backend is None else with_backend


def segment_max() -> Callable[[Any], torch.Tensor]:
    """One cuBLAS product over all documents, then the maximum of each segment of its rows."""

    def run(x: Any) -> torch.Tensor:
        products = x.docs @ x.queries.T  # [Td, Tq]
        ends = x.ends.long()
        # unsafe: without the checks, which would wait for the GPU.
        best = torch.segment_reduce(products.float(), "max", offsets=ends, axis=0, unsafe=True)
        return best.view(len(best), x.n_queries, -1).mean(-1).T

    return run


def late_interaction(device: torch.device) -> Callable[[Any], torch.Tensor]:
    cuda_only(device)
    import late_interaction_kernels

    def run(x: Any) -> torch.Tensor:
        per_query = len(x.queries) // x.n_queries
        sums = late_interaction_kernels.maxsim_varlen(
            x.queries, x.docs, x.q_ends, x.ends, per_query, x.longest
        )
        return sums / per_query

    return run


def flash_maxsim(device: torch.device) -> Callable[[Any], torch.Tensor]:
    """One query only; it computes in fp16."""
    cuda_only(device)
    from flash_maxsim import flash_maxsim_packed

    def run(x: Any) -> torch.Tensor:
        return (flash_maxsim_packed(x.queries, x.docs, x.ends, x.longest) / len(x.queries))[None]

    return run


def dense_scatter(vocab_size: int) -> Callable[[Any], torch.Tensor]:
    """Weights into vectors as wide as the vocabulary, then their non-zeros: the usual way."""

    def run(x: Any) -> torch.Tensor:
        rows = x.weights.new_zeros(x.n_texts, vocab_size)
        flat = x.texts.long() * vocab_size + x.ids
        rows.view(-1).scatter_reduce_(0, flat, x.weights, "amax")
        rows[:, x.dropped] = 0
        where = rows.nonzero()  # it waits for the GPU: the size is not known before
        return torch.stack([*where.T, rows[where[:, 0], where[:, 1]]])

    return run


def compiled(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    cuda_only(device)
    return torch.compile(function)
