"""softmax(Q·Kᵀ·scale)·V over the texts of a packed batch."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from . import checks, native


def varlen_attention(
    qkv: torch.Tensor,
    cu_seqlens: torch.Tensor | NDArray[np.int32],
    max_seqlen: int,
    scale: float | None = None,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """out[i] = softmax(Q[i]·K[i]ᵀ·scale)·V[i] for each text i and head, in both directions.

    Args:
        qkv: [T, 3, H, D], queries, keys and values as one linear layer leaves them.
        cu_seqlens: int32 [N + 1] on the CPU, text i owns tokens cu_seqlens[i]:cu_seqlens[i + 1].
        max_seqlen: length of the longest text, in tokens.
        scale: factor of the products, 1/√D if None.
        out: [T, H·D] to write into; a new tensor if None.

    Returns:
        [T, H·D] in the dtype of `qkv`; sums are kept in fp32.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape, or offsets that do not fit T or max_seqlen.
    """
    checks.tensor("qkv", qkv, 4, checks.FLOATS)
    tokens, three, heads, dim = qkv.shape
    if three != 3 or heads == 0 or dim == 0:
        raise ValueError(f"qkv: shape [T, 3, H, D] was expected, got {list(qkv.shape)}")
    scale = 1 / math.sqrt(dim) if scale is None else float(scale)

    if out is not None:
        checks.output(out, (tokens, heads * dim), qkv)

    if lib := native.library_for(qkv, out):
        ends = checks.array("cu_seqlens", cu_seqlens, np.int32)
        out = qkv.new_empty(tokens, heads * dim) if out is None else out
        lib.attention(
            qkv.data_ptr(), ends.ctypes.data, len(ends) - 1, tokens, max_seqlen, heads, dim, scale,
            out.data_ptr(), native.DTYPES[qkv.dtype], native.threads(),
        )  # fmt: skip
        return out
    ends = checks.offsets("cu_seqlens", cu_seqlens, tokens, np.int32)
    lengths = np.diff(ends)
    longest = int(lengths.max(initial=0))
    if max_seqlen != longest:
        raise ValueError(f"max_seqlen: {longest} was expected from cu_seqlens, got {max_seqlen}")
    result = _grouped_sdpa(qkv, ends, lengths, scale)
    return result if out is None else out.copy_(result)


def _grouped_sdpa(
    qkv: torch.Tensor, ends: NDArray[np.int32], lengths: NDArray[np.int32], scale: float
) -> torch.Tensor:
    """The same by torch alone, on any device: one dense call per group of equal lengths."""
    _, _, heads, dim = qkv.shape
    rows, parts = [np.empty(0, np.int64)], [qkv.new_empty(0, heads * dim)]
    for length in np.unique(lengths[lengths > 0]):
        starts = ends[:-1][lengths == length].astype(np.int64)
        index = (starts[:, None] + np.arange(length)).reshape(-1)
        taken = qkv[torch.from_numpy(index).to(qkv.device)]
        q, k, v = taken.view(len(starts), int(length), 3, heads, dim).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, scale=scale)
        rows.append(index)
        parts.append(out.transpose(1, 2).reshape(-1, heads * dim))
    # Every token belongs to exactly one group, so sorting by row puts all of them back.
    order = np.argsort(np.concatenate(rows), kind="stable")
    return torch.cat(parts)[torch.from_numpy(order).to(qkv.device)]
