"""The sparse head's token weights to CSR rows on the device, GPU time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bench.core.harness import OURS, Bench, Row, micros, times
from bench.core.measure import Candidate
from bench.peers import ops

VOCAB, SPECIAL = 250002, (0, 1, 2, 3)
AHEAD = 2e-3


@dataclass
class DeviceWeights:
    """ids, texts int32 [T], weights fp32 [T], ends int32 [N + 1], all on the device."""

    ids: torch.Tensor
    weights: torch.Tensor
    texts: torch.Tensor
    ends: torch.Tensor
    n_texts: int
    dropped: list[int]


def _lengths(bench: Bench) -> list[int]:
    """100k tokens of texts around 180."""
    if bench.scale.smoke:
        return [3, 40, 2]
    return np.random.default_rng(0).gamma(3, 60, 556).clip(5, 512).astype(int).tolist()


def _weighted(bench: Bench, lengths: Sequence[int], vocab: int, seed: int) -> DeviceWeights:
    """Half of a text's tokens repeat an id, as in real text; 95 % of the weights are positive."""
    random = np.random.default_rng(seed)
    ends = ops.offsets(lengths)
    ids = (4 + (vocab - 4) * random.random(ends[-1]) ** 8).astype(np.int32)
    ids[ends[:-1]], ids[ends[1:] - 1] = 0, 2
    weights = random.random(ends[-1], dtype=np.float32) * 0.3 + 1e-6
    weights[random.random(ends[-1]) < 0.05] = 0
    texts = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    arrays = (torch.from_numpy(a).to(bench.device) for a in (ids, weights, texts, ends))
    return DeviceWeights(*arrays, len(lengths), list(SPECIAL))


def _dicts(indptr: np.ndarray, indices: np.ndarray, values: np.ndarray) -> list[dict]:
    return [
        dict(zip(indices[a:b].tolist(), values[a:b].tolist(), strict=True))
        for a, b in pairwise(indptr)
    ]


def _judge(expected: list[dict], name: str, truth: object, found: object) -> str:
    if isinstance(found, tuple):
        indptr, indices, values = (part.cpu().numpy() for part in found)
        rows = _dicts(indptr, indices, values)
    else:
        texts, indices, values = found.cpu().numpy()
        indptr = np.searchsorted(texts, np.arange(len(expected) + 1))
        rows = _dicts(indptr, indices.astype(np.int64), values.astype(np.float32))
    wrong = [i for i, (a, b) in enumerate(zip(expected, rows, strict=True)) if a != b]
    return f"{len(wrong)} rows differ, the first is {wrong[0]}" if wrong else ""


@pytest.mark.first
def test_sparse_csr(bench: Bench) -> None:
    from m3fast.kernels.reference import sparse_rows_ref
    from m3fast.kernels.sparse import sparse_csr

    lengths = _lengths(bench)
    vocab = bench.pick(VOCAB, 100)
    inputs = [_weighted(bench, lengths, vocab, seed) for seed in range(2)]
    first = inputs[0]
    expected = sparse_rows_ref(first.ids.cpu(), first.weights.cpu(), first.ends.cpu(), SPECIAL)

    def ours(x: DeviceWeights) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return sparse_csr(x.ids, x.weights, x.ends, x.texts, SPECIAL)

    tokens = sum(lengths)
    bench.compare(
        Row(
            f"sparse to CSR, {len(lengths)} texts",
            shape=f"{tokens} tokens of texts of {min(lengths)} to {max(lengths)}, {vocab} ids",
            tokens=tokens,
            moved=12.0 * tokens + 8.0 * sum(map(len, expected)),
            note="GPU time; dense scatter: zeros [N, V], scatter_reduce, nonzero, which waits for "
            "the GPU in its middle",
        ),
        {
            OURS: lambda: ours,
            "dense scatter": partial(ops.dense_scatter, vocab),
        },
        inputs,
        rounds=100,
        aims={OURS: micros(60), "dense scatter": times(8)},
        judge=partial(_judge, expected),
        ahead=AHEAD,
    )


def test_sparse_fused(bench: Bench) -> None:
    """What the head adds to the last LayerNorm: the difference of these figures is its cost."""
    from m3fast.kernels.layernorm import add_layernorm, add_layernorm_dot
    from m3fast.kernels.sparse import sparse_csr

    lengths = _lengths(bench)
    vocab, width = bench.pick((VOCAB, 1024), (100, 64))
    text = _weighted(bench, lengths, vocab, 0)
    tokens = sum(lengths)
    random = torch.Generator(bench.device).manual_seed(0)
    dtype = bench.pick(torch.bfloat16, torch.float16)

    def make(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, device=bench.device).to(dtype)

    inputs = [(make(tokens, width), make(tokens, width)) for _ in range(2)]
    bias, weight, shift, head = (make(width) for _ in range(4))
    head_bias = make(1)
    out = torch.empty_like(inputs[0][0])
    weights = torch.empty(tokens, device=bench.device)
    norm = (bias, weight, shift, 1e-5)

    def ours(x: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        found = add_layernorm_dot(*x, *norm, head, head_bias, out=out, weights=weights)
        sparse_csr(text.ids, found[1], text.ends, text.texts, SPECIAL)
        return found[1]

    def dot_only(x: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return add_layernorm_dot(*x, *norm, head, head_bias, out=out, weights=weights)[1]

    def apart(x: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        y = add_layernorm(*x, *norm, out=out)
        return torch.relu(F.linear(y.float(), head.float()[None], head_bias.float())).squeeze(-1)

    def alone(x: tuple[torch.Tensor, torch.Tensor]) -> None:
        add_layernorm(*x, *norm, out=out)

    candidates: dict[str, Candidate] = {
        OURS: ours,
        "LayerNorm + dot product, fused": dot_only,
        "LayerNorm, then torch's product": apart,
        "LayerNorm alone": alone,
    }
    bench.compare(
        Row(
            "last LayerNorm + sparse head to CSR, bf16",
            shape=f"{tokens} x {width}",
            dtype=str(dtype).removeprefix("torch."),
            tokens=tokens,
            moved=3.0 * out.nbytes + 12.0 * tokens,
            note="GPU time",
        ),
        {name: lambda run=run: run for name, run in candidates.items()},
        inputs,
        rounds=100,
        judge=ops.near(apart(inputs[0]).clone(), 0.02),
        ahead=AHEAD,
    )
