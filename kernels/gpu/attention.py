"""Flash attention over packed texts: one launch for any mix of lengths (kernels/attention.py)."""
# pyright: basic, reportCallIssue=false, reportGeneralTypeIssues=false
# Triton's language is typed for its own compiler.

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from .dependent import begin, overlap, wait


@dataclass(frozen=True)
class AttentionConfig:
    """Tiles of one length class.

    Attributes:
        short: rows of a tile that whole texts share; texts of up to so many tokens go there.
        rows: query rows of a longer text's tile; 0 if the class has no longer text.
        keys: key rows of one step through a longer text; 0 likewise.
        tma: load full key blocks by TMA (sm_90 on), else by pointers.
    """

    short: int
    rows: int
    keys: int
    warps: int
    stages: int
    tma: bool = False


DIMS = (16, 32, 64, 128)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def default_config(arch: int, dtype: torch.dtype, dim: int, longest: str) -> AttentionConfig:
    """The config of a length class ("32", "64", "128" or "longer") where none was measured.

    Registers are those of fp16 machine code, per thread; 65,536 make a processor's file.
    """
    if dtype == torch.float32:
        side = 16 if dim > 64 else 32  # sums off the tensor cores: larger tiles spill
        return AttentionConfig(side, side, side, warps=8, stages=1)
    warps = 8 if dim > 64 and arch < 90 else 4  # sm_80, D = 128: 4 warps fill all 255 registers
    if longest == "32" and arch < 90:  # an H200 takes 102 µs with these, 77 with the next
        return AttentionConfig(32, 0, 0, warps=2, stages=1)
    if longest in ("32", "64"):
        return AttentionConfig(64, 0, 0, warps=warps, stages=1)
    if longest == "128":  # at most one full block of keys: nothing to pipeline
        return AttentionConfig(64, 64, 64, warps=warps, stages=1)
    if arch < 90:  # D = 64: 128 rows spill at 4 warps and at 8 leave one block to a processor
        rows, stages = (128, 2) if dim > 64 else (64, 3)
        return AttentionConfig(64, rows, 64, warps=warps, stages=stages)
    # D = 64, measured on an H200: 64 rows are 9 % ahead of 128 on passages, 2 % at 2,048 tokens,
    # and 3 % behind at 8,192.
    rows, warps = 64 if dim == 64 else 128, 8 if dim > 64 else 4
    return AttentionConfig(64, rows, 64, warps=warps, stages=3, tma=True)


def candidates(arch: int, dtype: torch.dtype, dim: int, longest: str) -> list[AttentionConfig]:
    """What `m3fast tune` tries for a length class."""
    found = [default_config(arch, dtype, dim, longest)]
    if dtype == torch.float32:
        return found
    if longest in ("32", "64"):
        side = int(longest)
        found += [AttentionConfig(side, 0, 0, warps, 1) for warps in (1, 2, 4, 8)]
        if longest == "32":
            found.append(AttentionConfig(64, 0, 0, 4, 1))
    else:
        found += [
            AttentionConfig(short, rows, keys, warps, stages, tma)
            for short in (32, 64)
            for rows, keys, warps in ((64, 64, 4), (64, 128, 4), (128, 64, 4), (128, 64, 8),
                                      (128, 128, 8))
            for stages in ((1, 2) if longest == "128" else (2, 3))
            for tma in ((True, False) if arch >= 90 and longest != "128" else (False,))
        ]  # fmt: skip
    return list(dict.fromkeys(found))


def launch_attention(
    qkv: torch.Tensor,
    tiles: torch.Tensor,
    texts: torch.Tensor,
    scale: float,
    out: torch.Tensor,
    config: AttentionConfig,
    early: bool = False,
) -> None:
    """Fill the rows of `out` [T, H·D] that `tiles` names; contiguous qkv [T, 3, H, D]."""
    tokens, _, heads, dim = qkv.shape
    if len(tiles) == 0:
        return
    desc = None
    if config.tma and qkv.data_ptr() % 16 == 0:
        width = 3 * heads * dim
        desc = TensorDescriptor(qkv, [tokens, width], [width, 1], [config.keys, dim])
    attention_kernel[(len(tiles) * heads,)](
        qkv, out, tiles, texts, desc, heads, scale * math.log2(math.e),
        D=dim, SHORT=config.short, ROWS=config.rows, KEYS=config.keys,
        PRECISION="ieee" if qkv.dtype == torch.float32 else "tf32",
        num_warps=config.warps, num_stages=config.stages, **overlap(tokens, qkv.device, early),
    )  # fmt: skip


@triton.jit
def _masked(q, k, v, mask, scale, PRECISION: tl.constexpr):
    """One block of keys: p·V, row maxima, row sums, and p = exp2(scores - maximum)."""
    s = tl.where(mask, tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale, float("-inf"))
    high = tl.max(s, 1)
    p = tl.exp2(s - high[:, None])
    total = tl.sum(p, 1)
    p = p.to(v.dtype)
    return tl.dot(p, v, input_precision=PRECISION), high, total, p


@triton.jit
def _short_tile(
    q_from, k_from, to, texts, count, stride, width, scale,
    D: tl.constexpr, SHORT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Whole texts, side by side in one tile: a token attends where the text is its own."""
    rows = tl.arange(0, SHORT)
    dims = tl.arange(0, D)
    inside = rows < count
    text = tl.load(texts + rows, mask=inside, other=-1)
    cells = rows[:, None] * stride + dims[None, :]
    v_from = k_from + width
    first = tl.load(texts)
    last = tl.load(texts + count - 1)
    q = tl.load(q_from + cells, mask=inside[:, None], other=0.0)
    k = tl.load(k_from + cells, mask=inside[:, None], other=0.0)
    v = tl.load(v_from + cells, mask=inside[:, None], other=0.0)
    acc, _, total, p = _masked(q, k, v, text[:, None] == text[None, :], scale, PRECISION)
    if first != last:  # noqa: SIM102 (Triton's `and` would reduce in every tile)
        # 0·NaN and 0·inf of a neighbour's V are NaN. Where any came out, each text goes by itself.
        if tl.max(tl.max((acc != acc).to(tl.int32), 1), 0) == 1:
            for one in tl.range(first, last + 1, num_stages=1):
                own = (text == one)[:, None]
                v = tl.load(v_from + cells, mask=own, other=0.0)
                acc = tl.where(own, tl.dot(p, v, input_precision=PRECISION), acc)
    acc = acc * (1.0 / total)[:, None]
    tl.store(to + rows[:, None] * width + dims[None, :], acc.to(q.dtype), mask=inside[:, None])


@triton.jit
def _long_tile(
    q_from, k_from, to, desc, row_count, key_begin, key_count, column, stride, width, scale,
    D: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Rows of one text against all its keys: the last 1 to KEYS of them first, then full blocks."""
    rows = tl.arange(0, ROWS)
    keys = tl.arange(0, KEYS)
    dims = tl.arange(0, D)
    inside = (rows < row_count)[:, None]
    q = tl.load(q_from + (rows[:, None] * stride + dims[None, :]), mask=inside, other=0.0)
    full = (key_count - 1) // KEYS * KEYS
    # Keys and values beyond the text are zeros: another text's NaN would survive a weight of 0.
    real = keys < key_count - full
    cells = keys[:, None] * stride + dims[None, :]
    k_end = k_from + full * stride.to(tl.int64)
    v_end = k_end + width
    k = tl.load(k_end + cells, mask=real[:, None], other=0.0)
    v = tl.load(v_end + cells, mask=real[:, None], other=0.0)
    acc, high, total, _ = _masked(q, k, v, real[None, :], scale, PRECISION)
    for start in tl.range(0, full, KEYS):
        if desc is None:
            k_at = k_from + start * stride.to(tl.int64)
            k = tl.load(k_at + cells)
            v = tl.load(k_at + width + cells)
        else:
            k = desc.load([key_begin + start, column + width])
            v = desc.load([key_begin + start, column + 2 * width])
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        higher = tl.maximum(high, tl.max(s, 1) * scale)
        p = tl.exp2(s * scale - higher[:, None])
        decay = tl.exp2(high - higher)
        total = total * decay + tl.sum(p, 1)
        acc = tl.dot(p.to(v.dtype), v, acc * decay[:, None], input_precision=PRECISION)
        high = higher
    acc = acc * (1.0 / total)[:, None]
    tl.store(to + (rows[:, None] * width + dims[None, :]), acc.to(q.dtype), mask=inside)


@triton.jit(do_not_specialize=["heads"], do_not_specialize_on_alignment=["tiles", "texts"])
def attention_kernel(
    qkv, out, tiles, texts, desc, heads, scale,
    D: tl.constexpr, SHORT: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A tile of the list for one head; `scale` holds the factor log2(e) of exp2."""
    begin(PDL)
    tile = tl.program_id(0) // heads
    head = tl.program_id(0) % heads
    row_begin = tl.load(tiles + 4 * tile)
    row_count = tl.load(tiles + 4 * tile + 1)
    key_begin = tl.load(tiles + 4 * tile + 2)
    key_count = tl.load(tiles + 4 * tile + 3)
    wait(PDL)  # a program without rows too: the kernel behind waits for this one alone
    if row_count == 0:
        return
    column = head * D
    width = heads * D
    stride = 3 * width
    q_from = qkv + row_begin.to(tl.int64) * stride + column
    k_from = qkv + key_begin.to(tl.int64) * stride + (column + width)
    to = out + row_begin.to(tl.int64) * width + column
    if ROWS == 0 or key_count <= SHORT:
        _short_tile(
            q_from, k_from, to, texts + row_begin, row_count, stride, width, scale,
            D, SHORT, PRECISION,
        )  # fmt: skip
    else:
        _long_tile(
            q_from, k_from, to, desc, row_count, key_begin, key_count, column,
            stride, width, scale, D, ROWS, KEYS, PRECISION,
        )  # fmt: skip
