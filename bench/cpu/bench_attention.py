"""Attention over packed texts on a CPU, beside torch's own ways to do it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bench.core import record
from bench.core.harness import OURS, Bench, Row, times
from bench.core.measure import Absent, Candidate
from bench.core.workloads import ragged_lengths
from bench.peers import ops

HEADS, DIM = 16, 64
TOKENS = 4096
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.02}
GROUPS, PADDED, VARLEN = "SDPA, groups of equal length", "SDPA, padded, mask", "varlen_attn"


@dataclass
class Texts:
    """The same random texts packed, qkv [T, 3, H, D], and padded, three of [N, H, L, D]."""

    qkv: torch.Tensor
    ends: np.ndarray
    lengths: list[int]
    padded: tuple[torch.Tensor, ...] | None
    mask: torch.Tensor  # [N, 1, 1, L], True at real tokens


def _texts(lengths: list[int], heads: int, dtype: torch.dtype, seed: int) -> Texts:
    random = torch.Generator().manual_seed(seed)
    qkv = torch.randn(sum(lengths), 3, heads, DIM, generator=random).to(dtype)
    longest = max(lengths)
    real = torch.arange(longest) < torch.tensor(lengths)[:, None]
    padded = None
    if min(lengths) < longest:
        rows = qkv.new_zeros(len(lengths), longest, 3, heads, DIM)
        rows[real] = qkv
        padded = tuple(part.transpose(1, 2).contiguous() for part in rows.unbind(2))
    return Texts(qkv, ops.offsets(lengths), lengths, padded, real[:, None, None])


def _ours(first: Texts) -> Candidate:
    from m3fast.kernels.attention import varlen_attention

    longest = max(first.lengths)
    tokens, _, heads, dim = first.qkv.shape
    out = first.qkv.new_empty(tokens, heads * dim)
    return lambda x: varlen_attention(x.qkv, x.ends, longest, out=out)


def _groups(first: Texts) -> Candidate:
    """One dense call for all texts of one length; gathered where they lie apart."""
    by_length: dict[int, list[int]] = {}
    for i, length in enumerate(first.lengths):
        by_length.setdefault(length, []).append(i)
    tokens, _, heads, dim = first.qkv.shape
    out = first.qkv.new_empty(tokens, heads * dim)
    places = {
        length: torch.cat([torch.arange(first.ends[i], first.ends[i + 1]) for i in of])
        for length, of in by_length.items()
    }

    def run(x: Texts) -> torch.Tensor:
        for length, of in by_length.items():
            begin = int(x.ends[of[0]])
            together = of[-1] - of[0] == len(of) - 1
            part = x.qkv[begin : begin + length * len(of)] if together else x.qkv[places[length]]
            q, k, v = part.view(len(of), length, 3, heads, dim).permute(2, 0, 3, 1, 4)
            found = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
            found = found.reshape(-1, heads * dim)
            if together:
                out[begin : begin + len(found)] = found
            else:
                out[places[length]] = found
        return out

    return run


def _padded(first: Texts) -> Candidate:
    """Padding and unpadding are not in its time: who pads, pads once for all layers."""

    def run(x: Texts) -> torch.Tensor:
        assert x.padded is not None
        return F.scaled_dot_product_attention(*x.padded, attn_mask=x.mask)

    return run


def _varlen(first: Texts) -> Candidate:
    from torch.nn.attention.varlen import varlen_attn

    ends, longest = torch.from_numpy(first.ends), max(first.lengths)

    def run(x: Texts) -> torch.Tensor:
        q, k, v = x.qkv.unbind(1)
        return varlen_attn(q, k, v, ends, ends, longest, longest).flatten(1)

    try:
        run(first)
    except NotImplementedError:
        raise Absent("this torch has no kernel for it on a CPU") from None
    return run


def _judge(expected: torch.Tensor, tolerance: float, first: Texts) -> Callable[..., str]:
    near = ops.near(expected, tolerance)

    def judge(name: str, truth: Any, found: torch.Tensor) -> str:
        if found.ndim == 4:  # padded, [N, H, L, D]
            found = found.transpose(1, 2)[first.mask[:, 0, 0]].flatten(1)
        return near(name, truth, found)

    return judge


def _lengths(bench: Bench, mix: str) -> list[int]:
    if mix == "ragged":
        return ragged_lengths(bench.pick(40, 5), high=bench.pick(331, 40))
    length = bench.pick(int(mix), min(int(mix), 48))
    return [length] * bench.pick(TOKENS // int(mix), 2)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("mix", ["20", "64", "512", "2048", "ragged"])
def test_attention(bench: Bench, mix: str, dtype: str) -> None:
    from m3fast.kernels.reference import varlen_attention_ref

    lengths, heads = _lengths(bench, mix), bench.pick(HEADS, 2)
    tokens, kind = sum(lengths), {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    ragged = mix == "ragged"
    span = f"{min(lengths)} to {max(lengths)}" if ragged else str(lengths[0])
    words = "ragged mix" if ragged else f"{len(lengths)} texts of {span} tokens"
    row = Row(
        f"attention on a CPU, {words}, {dtype}",
        shape=f"{len(lengths)} texts of {span} tokens, {heads} heads of {DIM}",
        dtype=str(kind).removeprefix("torch."),
        tokens=tokens,
        padding=len(lengths) * max(lengths) / tokens if ragged else None,
        unit="TFLOP/s",
        work=sum(4.0 * n * n * heads * DIM for n in lengths),
        moved=4.0 * tokens * heads * DIM * kind.itemsize,
        note="padded: neither padding nor unpadding is in its time" if ragged else "",
    )
    bench.need(row, dtype == "fp32" or record.has_bf16(), "awaits a CPU with AVX512_BF16 or AMX")
    inputs = [_texts(lengths, heads, kind, seed) for seed in range(2)]
    first = inputs[0]
    expected = varlen_attention_ref(first.qkv.float(), torch.from_numpy(first.ends))
    makers = {OURS: partial(_ours, first), GROUPS: partial(_groups, first)}
    if ragged:
        makers[PADDED] = partial(_padded, first)
    makers[VARLEN] = partial(_varlen, first)
    bench.compare(
        row,
        makers,
        inputs,
        rounds=6 if mix == "2048" else 20,
        aims={GROUPS: times(1)},
        judge=_judge(expected, TOLERANCE[kind], first),
    )
