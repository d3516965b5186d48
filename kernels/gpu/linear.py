"""Products of few rows: a query's linear layers, bound by reading weights once.

A program holds all rows, some columns and, where results are summed later, a part of the depth. Its
weights are asked for at once, before the activations are there, so that memory is always busy.
"""

# pyright: basic, reportCallIssue=false
# (what @triton.jit makes of a function has no types, and takes num_warps)
from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .. import tuning
from .dependent import begin, overlap, wait
from .gelu import gelu


@dataclass(frozen=True)
class LinearConfig:
    """Tiles of a product.

    Attributes:
        outs: columns of a program.
        depth: of one step.
        parts: programs that share a column's depth, whose sums the next kernel adds; else 1.
    """

    outs: int
    depth: int
    parts: int
    warps: int
    stages: int


def default_config(outs: int, depth: int, summed: bool) -> LinearConfig:
    """About a program for each of an H100's 132 processors, 256 bytes of a row at a time.

    In a layer of BGE-M3 on an H200, from the end of the kernel before: 3,072 outputs take 4.4 µs in
    tiles of 16 and 4.9 of 32; down takes 4.7 µs in tiles of 32 by 4 parts and 6.6 of 64 by 8.
    """
    if not summed:
        return LinearConfig(32 if outs >= 4096 else 16, _step(depth), 1, 4, 4)
    parts = next((p for p in (4, 2) if 32 * p * outs <= 132 * 1024 and depth % (64 * p) == 0), 1)
    return LinearConfig(32, _step(depth // parts), parts, 4, 4)


def _step(depth: int) -> int:
    return 128 if depth % 128 == 0 else 64


def candidates(outs: int, depth: int, summed: bool) -> list[LinearConfig]:
    """What `m3fast tune` tries."""
    found = [default_config(outs, depth, summed)]
    found += [
        LinearConfig(columns, step, parts, warps, stages)
        for columns in (16, 32, 64)
        for parts in ((1, 2, 4, 8) if summed else (1,))
        for step, stages in ((64, 6), (128, 4), (128, 6), (256, 3))
        for warps in (4, 8)
        if 64 <= outs // columns * parts <= 264 and depth % (step * parts) == 0
    ]
    return list(dict.fromkeys(found))


@functools.cache
def _config(outs: int, depth: int, summed: bool, device: torch.device) -> LinearConfig:
    key = {"outs": str(outs), "depth": str(depth), "summed": int(summed)}
    return tuning.tuned("linear", key, default_config(outs, depth, summed), device)


@triton.jit(do_not_specialize=["rows"])
def linear_kernel(
    x, weight, bias, out, rows,
    N: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, OUTS: tl.constexpr, DEPTH: tl.constexpr,
    PARTS: tl.constexpr, GELU: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out[part] = x·Wᵀ over a part of the depth, or the whole of it + bias, and gelu of that."""
    part = tl.program_id(0) % PARTS
    down = tl.arange(0, ROWS)
    outs = tl.program_id(0) // PARTS * OUTS + tl.arange(0, OUTS)
    first = part * (K // PARTS)
    if PDL:
        quarters = first + tl.arange(0, 4) * (K // PARTS // 4)
        rows_at = (weight + outs[:, None] * K + quarters[None, :]).to(tl.int64)
        tl.inline_asm_elementwise(
            "cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0;", "=r,l,r",
            [rows_at, K // PARTS // 2], dtype=tl.int32, is_pure=False, pack=1,  # bytes
        )  # fmt: skip
    if bias is not None:
        b = tl.load(bias + outs).to(tl.float32)
    wait(PDL)
    begin(PDL)
    inside = (down < rows)[:, None]
    along = tl.arange(0, DEPTH)
    x_at = x + down[:, None] * K + (first + along)[None, :]
    w_at = weight + outs[:, None] * K + (first + along)[None, :]
    acc = tl.zeros([ROWS, OUTS], tl.float32)
    for step in tl.range(0, K // PARTS, DEPTH):
        a = tl.load(x_at + step, mask=inside, other=0.0)
        w = tl.load(w_at + step)
        acc = tl.dot(a, tl.trans(w), acc)
    if bias is not None:
        acc += b[None, :]
    if GELU:
        acc = gelu(acc)
    cells = (part * rows + down)[:, None] * N + outs[None, :]
    tl.store(out + cells, acc.to(out.dtype.element_ty), mask=inside)


def launch_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    gelu: bool = False,
    config: LinearConfig | None = None,
) -> None:
    """`out` [T, N] = x·Wᵀ + bias, and gelu of that, early, where `kernels.linear.few_rows`."""
    outs, depth = weight.shape
    config = config or _config(outs, depth, False, x.device)
    _launch(x, weight, bias, out, gelu, config)


def linear_parts(
    x: torch.Tensor, weight: torch.Tensor, config: LinearConfig | None = None
) -> torch.Tensor:
    """fp32 [parts, T, N] whose sum is x·Wᵀ, early, where `kernels.linear.few_rows`."""
    outs, depth = weight.shape
    config = config or _config(outs, depth, True, x.device)
    out = torch.empty(config.parts, len(x), outs, dtype=torch.float32, device=x.device)
    _launch(x, weight, None, out, False, config)
    return out


def _launch(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    gelu: bool,
    config: LinearConfig,
) -> None:
    (rows, depth), outs = x.shape, len(weight)
    linear_kernel[(outs // config.outs * config.parts,)](
        x, weight, bias, out, rows, N=outs, K=depth,
        ROWS=max(triton.next_power_of_2(rows), 16), OUTS=config.outs, DEPTH=config.depth,
        PARTS=config.parts, GELU=gelu,
        num_warps=config.warps, num_stages=config.stages, **overlap(rows, x.device, early=True),
    )  # fmt: skip
