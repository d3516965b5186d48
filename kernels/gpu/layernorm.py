"""LayerNorm over packed tokens, one pass over memory: a program normalises a few whole rows."""

# pyright: basic, reportCallIssue=false
# (what @triton.jit makes of a function has no types, and takes num_warps)
from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .. import dispatch, tuning
from .dependent import begin, overlap, wait

MAX_WIDTH = 4096
FEW_TOKENS = 2048


@dataclass(frozen=True)
class LayerNormConfig:
    rows: int
    warps: int


def default_config(arch: int, width: int, many: bool) -> LayerNormConfig:
    # By arithmetic, not measured: 8 values per thread and row are one 16-byte access in half
    # precision. With many tokens four rows share one read of the parameters and one barrier per
    # reduction; with few the rows are spread over the multiprocessors instead.
    warps = 1 if width <= 256 else 2 if width <= 512 else 4 if width <= 1024 else 8
    return LayerNormConfig(rows=4 if many and width <= 1024 else 1, warps=warps)


def candidates(arch: int, width: int) -> list[LayerNormConfig]:
    return [
        LayerNormConfig(rows, warps)
        for rows in (1, 2, 4, 8)
        for warps in (1, 2, 4, 8)
        # at most 64 fp32 values per thread of each tensor in flight
        if rows * triton.next_power_of_2(width) <= 64 * 32 * warps
    ]


@functools.cache
def _config(width: int, many: bool, device: torch.device, arch: int) -> LayerNormConfig:
    key = {"width": width, "many": int(many)}
    return tuning.tuned("layernorm", key, default_config(arch, width, many), device)


@triton.jit
def _row(vector, C: tl.constexpr, BLOCK: tl.constexpr):
    """A parameter [C] as fp32 [1, BLOCK], 0 from column C on.

    Loaded before the reductions: no load is moved up across their barriers.
    """
    cols = tl.arange(0, BLOCK)
    return tl.load(vector + cols, mask=cols < C, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _layernorm(y, w, s, eps, C: tl.constexpr, BLOCK: tl.constexpr):
    """[ROWS, BLOCK] fp32, 0 from column C on -> the same, normalised; rows are independent."""
    cols = tl.arange(0, BLOCK)
    mean = tl.sum(y, 1) / C
    centred = tl.where((cols < C)[None, :], y - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, 1) / C
    return centred * tl.rsqrt(variance + eps)[:, None] * w + s


@triton.jit(do_not_specialize=["tokens"], do_not_specialize_on_alignment=["dots"])
def add_layernorm_kernel(
    x, residual, bias, weight, shift, head_weight, head_bias, out, dots, eps, tokens,
    C: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    begin(PDL)
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, BLOCK)
    cells = rows[:, None] * C + cols[None, :]
    inside = (rows < tokens)[:, None] & (cols < C)[None, :]
    w = _row(weight, C, BLOCK)
    s = _row(shift, C, BLOCK)
    if bias is not None:
        b = _row(bias, C, BLOCK)
    if dots is not None:
        h = _row(head_weight, C, BLOCK)
        h_bias = tl.load(head_bias).to(tl.float32)
    wait(PDL)
    y = tl.load(x + cells, mask=inside, other=0.0).to(tl.float32)
    for part in tl.static_range(1, PARTS):
        y += tl.load(x + (part * tokens * C + cells), mask=inside, other=0.0)
    y += tl.load(residual + cells, mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        y += b
    y = _layernorm(y, w, s, eps, C, BLOCK).to(out.dtype.element_ty)
    tl.store(out + cells, y, mask=inside)
    if dots is not None:
        # Columns from C on hold 0: _layernorm adds a shift of 0 there.
        dot = tl.sum(y.to(tl.float32) * h, 1) + h_bias
        # not `maximum`, which would turn a NaN into 0
        tl.store(dots + rows, tl.where(dot <= 0, 0.0, dot), mask=rows < tokens)


@triton.jit(
    do_not_specialize=["tokens", "n_words", "n_positions"],
    do_not_specialize_on_alignment=["ids", "positions"],
)
def embed_layernorm_kernel(
    ids, positions, word, position, type_row, weight, shift, out, eps, tokens, n_words,
    n_positions, C: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, BLOCK)
    inside = (rows < tokens)[:, None] & (cols < C)[None, :]
    # Clamped: whoever leaves the check out gets wrong vectors from wrong ids, not a bad address.
    i = tl.load(ids + rows, mask=rows < tokens, other=0)
    p = tl.load(positions + rows, mask=rows < tokens, other=0)
    i = tl.minimum(tl.maximum(i, 0), n_words - 1).to(tl.int64)
    p = tl.minimum(tl.maximum(p, 0), n_positions - 1).to(tl.int64)
    y = tl.load(word + i[:, None] * C + cols[None, :], mask=inside, other=0.0).to(tl.float32)
    y += tl.load(position + p[:, None] * C + cols[None, :], mask=inside, other=0.0).to(tl.float32)
    y += _row(type_row, C, BLOCK)
    y = _layernorm(y, _row(weight, C, BLOCK), _row(shift, C, BLOCK), eps, C, BLOCK)
    tl.store(out + rows[:, None] * C + cols[None, :], y.to(out.dtype.element_ty), mask=inside)


def launch_add_layernorm(
    x: torch.Tensor,
    residual: torch.Tensor,
    bias: torch.Tensor | None,
    weight: torch.Tensor,
    shift: torch.Tensor,
    eps: float,
    out: torch.Tensor,
    head: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
    early: bool = False,
    config: LayerNormConfig | None = None,
) -> None:
    """`head`: weight [C], bias [1] and where the dot products fp32 [T] go.

    `x` may be fp32 [parts, T, C] whose sum is meant.
    """
    tokens, width = residual.shape
    if not tokens:
        return
    config = config or _config_for(residual, tokens)
    head_weight, head_bias, dots = head or (None, None, None)
    add_layernorm_kernel[(triton.cdiv(tokens, config.rows),)](
        x, residual, bias, weight, shift, head_weight, head_bias, out, dots, eps, tokens,
        C=width, BLOCK=triton.next_power_of_2(width), ROWS=config.rows,
        PARTS=len(x) if x.ndim == 3 else 1, num_warps=config.warps,
        **overlap(tokens, residual.device, early),
    )  # fmt: skip


def launch_embed_layernorm(
    ids: torch.Tensor,
    positions: torch.Tensor,
    word: torch.Tensor,
    position: torch.Tensor,
    type_row: torch.Tensor,
    weight: torch.Tensor,
    shift: torch.Tensor,
    eps: float,
    out: torch.Tensor,
    config: LayerNormConfig | None = None,
) -> None:
    tokens, width = out.shape
    if not tokens:
        return
    config = config or _config_for(out, tokens)
    embed_layernorm_kernel[(triton.cdiv(tokens, config.rows),)](
        ids, positions, word, position, type_row, weight, shift, out, eps, tokens,
        len(word), len(position),
        C=width, BLOCK=triton.next_power_of_2(width), ROWS=config.rows, num_warps=config.warps,
    )  # fmt: skip


def _config_for(x: torch.Tensor, tokens: int) -> LayerNormConfig:
    return _config(x.shape[1], tokens > FEW_TOKENS, x.device, dispatch.arch(x.device))
