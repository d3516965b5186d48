"""Bias and GELU in place: one read and one write of the feed-forward's inner activations."""

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
class GeluConfig:
    rows: int
    cols: int
    warps: int


def default_config(arch: int, width: int) -> GeluConfig:
    # By arithmetic, not measured: 8 values per thread and row are one 16-byte access in half
    # precision; two rows in flight share one read of the bias.
    cols = 1024 if width >= 1024 else 256
    return GeluConfig(rows=2, cols=cols, warps=cols // 256)


def candidates(arch: int, width: int) -> list[GeluConfig]:
    return [
        GeluConfig(rows, cols, cols // 256)
        for cols in (256, 512, 1024, 2048)
        for rows in (1, 2, 4, 8)
        if cols <= max(width, 256)
    ]


@functools.cache
def _config(width: int, device: torch.device, arch: int) -> GeluConfig:
    return tuning.tuned("gelu", {"width": width}, default_config(arch, width), device)


@triton.jit
def gelu(y):
    """y·Φ(y) of fp32 y, within 1.1e-7·max(1, |y|): Φ(-t) = exp2(p(t)) for t = |y|.

    p is a minimax fit of degree 8 to log2 Φ(-t) with p(0) = -1, weighted by t·Φ(-t); it falls for
    all t > 0, so that far out Φ is 0 or 1. libdevice's erf is as close, but the kernel then has 38
    machine instructions per value instead of 19, and memory keeps pace with about 30.
    """
    t = tl.abs(y)
    p = t * -2.34583058e-06 + 3.34347933e-05
    p = p * t - 1.57412709e-04
    p = p * t - 2.08152749e-04
    p = p * t + 7.15957861e-03
    p = p * t - 5.25658056e-02
    p = p * t - 4.59183753e-01
    p = p * t - 1.15110826
    q = tl.exp2(p * t - 1.0)
    return y * tl.where(y > 0, 1.0 - q, q)


@triton.jit(do_not_specialize=["tokens"])
def bias_gelu_kernel(
    x, bias, tokens, F: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr
):  # fmt: skip
    across = tl.cdiv(F, COLS)
    down = tl.program_id(0) // across
    rows = down.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    cols = (tl.program_id(0) - down * across) * COLS + tl.arange(0, COLS)
    cells = x + rows[:, None] * F + cols[None, :]
    inside = (rows < tokens)[:, None] & (cols < F)[None, :]
    y = tl.load(cells, mask=inside, other=0.0).to(tl.float32)
    y += tl.load(bias + cols, mask=cols < F, other=0.0).to(tl.float32)[None, :]
    tl.store(cells, gelu(y).to(x.dtype.element_ty), mask=inside)


def launch_bias_gelu(x: torch.Tensor, bias: torch.Tensor, config: GeluConfig | None = None) -> None:
    tokens, width = x.shape
    if not x.numel():
        return
    config = config or _config(width, x.device, dispatch.arch(x.device))
    grid = (triton.cdiv(tokens, config.rows) * triton.cdiv(width, config.cols),)
    bias_gelu_kernel[grid](
        x, bias, tokens, F=width, ROWS=config.rows, COLS=config.cols, num_warps=config.warps
    )
