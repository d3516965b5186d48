"""Rows to vectors: each read once, its norm taken in registers, written once."""

# pyright: basic, reportCallIssue=false
# (what @triton.jit makes of a function has no types, and takes num_warps)
from __future__ import annotations

import torch
import triton
import triton.language as tl


def warps(width: int) -> int:
    # By arithmetic, not measured: 8 values per thread are one 16-byte access in half precision.
    return 1 if width <= 256 else 2 if width <= 512 else 4 if width <= 1024 else 8


@triton.jit(
    do_not_specialize=["stride", "n_texts", "n_out"],
    do_not_specialize_on_alignment=["rows", "texts", "cu_seqlens"],
)
def vectors_kernel(
    x, rows, texts, cu_seqlens, out, stride, n_texts, n_out,
    DIM: tl.constexpr, BLOCK: tl.constexpr, NORMALIZE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    to = row
    if texts is not None:
        text = tl.load(texts + row)
        if (text < 0) | (text >= n_texts):
            return
        if row == tl.load(cu_seqlens + text):
            return
        to = row - text - 1
    if (to < 0) | (to >= n_out):
        return
    if rows is not None:
        row = tl.load(rows + row)
    cols = tl.arange(0, BLOCK)
    v = tl.load(x + row * stride + cols, mask=cols < DIM, other=0.0).to(tl.float32)
    if NORMALIZE:
        norm = tl.sqrt_rn(tl.sum(v * v, 0))
        # not `maximum`, which would hide a NaN
        v = v / tl.where(norm < 1e-12, 1e-12, norm)
    tl.store(out + to * DIM + cols, v, mask=cols < DIM)


def launch_vectors(
    x: torch.Tensor,
    normalize: bool,
    out: torch.Tensor,
    count: int,
    *,
    rows: torch.Tensor | None = None,
    texts: torch.Tensor | None = None,
    cu_seqlens: torch.Tensor | None = None,
) -> None:
    """One program for each of `count` rows of `x`, or entries of `rows`."""
    width = out.shape[1]
    if not count or not len(out):
        return
    n_texts = 0 if cu_seqlens is None else len(cu_seqlens) - 1
    vectors_kernel[(count,)](
        x, rows, texts, cu_seqlens, out, x.stride(0), n_texts, len(out),
        DIM=width, BLOCK=triton.next_power_of_2(width), NORMALIZE=normalize,
        num_warps=warps(width),
    )  # fmt: skip
