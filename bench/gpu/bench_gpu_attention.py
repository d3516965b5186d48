"""Attention over packed texts, GPU time, beside torch's own ways to do it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend

from bench.core.harness import OURS, Bench, Row, times
from bench.core.measure import Candidate
from bench.peers import ops

HEADS, DIM = 16, 64
TOKENS = 32768
AHEAD = 2e-3


@dataclass
class DeviceTexts:
    """qkv [T, 3, H, D]; ends int32 [N + 1] on the device, lengths on the host."""

    qkv: torch.Tensor
    ends: torch.Tensor
    lengths: list[int]
    longest: int


def _texts(bench: Bench, lengths: list[int], heads: int, seed: int) -> DeviceTexts:
    random = torch.Generator(bench.device).manual_seed(seed)
    dtype = bench.pick(torch.bfloat16, torch.float16)  # no bf16 products in the interpreter
    shape = (sum(lengths), 3, heads, DIM)
    qkv = torch.randn(shape, generator=random, device=bench.device).to(dtype)
    ends = torch.from_numpy(ops.offsets(lengths)).to(bench.device)
    return DeviceTexts(qkv, ends, lengths, max(lengths))


def _ours(first: DeviceTexts) -> Candidate:
    from m3fast.kernels.attention import attention_plan, varlen_attention

    ends = ops.offsets(first.lengths)
    plan = attention_plan(ends, first.longest, DIM, first.qkv.dtype, first.qkv.device)
    tokens, _, heads, dim = first.qkv.shape
    out = first.qkv.new_empty(tokens, heads * dim)
    return lambda x: varlen_attention(x.qkv, ends, x.longest, out=out, plan=plan)


def _compare(bench: Bench, name: str, lengths: list[int], **peers: tuple) -> None:
    from m3fast.kernels.reference import varlen_attention_ref

    heads = bench.pick(HEADS, 2)
    inputs = [_texts(bench, lengths, heads, seed) for seed in range(2)]
    first = inputs[0]
    expected = varlen_attention_ref(first.qkv.float(), first.ends)
    bench.compare(
        Row(
            name,
            shape=f"{len(lengths)} texts of {min(lengths)} to {max(lengths)} tokens, {heads} heads "
            f"of {DIM}",
            dtype=str(first.qkv.dtype).removeprefix("torch."),
            tokens=sum(lengths),
            unit="TFLOP/s",
            work=sum(4.0 * n * n * heads * DIM for n in lengths),
            moved=4.0 * sum(lengths) * heads * DIM * first.qkv.itemsize,
            length=lengths[0] if min(lengths) == max(lengths) else None,
            note="GPU time; the plan, which 24 layers share, is made before",
        ),
        {OURS: partial(_ours, first)}
        | {peer.replace("_", " "): maker for peer, (maker, _) in peers.items()},
        inputs,
        rounds=100,
        aims={peer.replace("_", " "): aim for peer, (_, aim) in peers.items() if aim},
        judge=ops.near(expected, 0.02),
        ahead=AHEAD,
    )


@pytest.mark.first
@pytest.mark.parametrize("length", [16, 20, 32, 64, 128, 512, 2048, 8192])
def test_attention_one_length(bench: Bench, length: int) -> None:
    length = bench.pick(length, min(length, 40))
    if bench.scale.smoke and length < 32:
        pytest.skip("toy sizes of this row are those of 32 and 40 tokens")
    count = bench.pick(TOKENS // length, 3)
    device = bench.device
    _compare(
        bench,
        f"attention, {count} texts of {length} tokens, bf16",
        [length] * count,
        varlen_attn=(partial(ops.varlen_attn, device), times(2 if length <= 64 else 1.25)),
        cuDNN=(
            partial(ops.dense_sdpa, device, SDPBackend.CUDNN_ATTENTION),
            times(1) if length >= 512 else None,
        ),
    )


def _ragged(bench: Bench) -> list[int]:
    """Passages of mean 180 and at most 512 tokens, some chat queries, one long document."""
    if bench.scale.smoke:
        return [5, 70, 1, 33]
    random = np.random.default_rng(0)
    passages = random.gamma(3, 60, 130).clip(20, 512).astype(int).tolist()
    return [4096, *passages, *random.integers(5, 41, 200).tolist()]


def test_attention_ragged(bench: Bench) -> None:
    _compare(
        bench,
        "attention, ragged mix, bf16",
        _ragged(bench),
        varlen_attn=(partial(ops.varlen_attn, bench.device), None),
    )
