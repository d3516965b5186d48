"""The fused elementwise kernels beside torch.compile and a copy of as many bytes, GPU time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from bench.core import gputime
from bench.core.harness import OURS, Bench, Row, share
from bench.core.measure import Candidate
from bench.peers import ops

TOKENS, HIDDEN, FFN = 32768, 1024, 4096
AHEAD = 1e-3
COPY = "copy of as many bytes"


def _random(bench: Bench, *shape: int, seed: int = 0) -> torch.Tensor:
    random = torch.Generator(bench.device).manual_seed(seed)
    return torch.randn(shape, generator=random, device=bench.device).to(_dtype(bench))


def _dtype(bench: Bench) -> torch.dtype:
    return bench.pick(torch.bfloat16, torch.float16)


def _compare(
    bench: Bench,
    name: str,
    inputs: list[Any],
    ours: Candidate,
    plain: Callable[..., Any],
    moved: int,
    expected: torch.Tensor,
    width: int,
) -> None:
    """`plain` is the op in torch, for torch.compile; `moved` counts bytes read and written."""

    def compiled() -> Candidate:
        run = ops.compiled(plain, bench.device)
        return lambda x: run(*x)

    tokens = len(inputs[0][0])
    bench.compare(
        Row(
            name,
            shape=f"{tokens} x {width}",
            dtype=str(_dtype(bench)).removeprefix("torch."),
            tokens=tokens,
            moved=float(moved),
            note=f"GPU time; {moved / 1e6:.0f} MB read and written",
        ),
        {
            OURS: lambda: ours,
            **bench.slow({"torch.compile": compiled}, "quick"),
            COPY: partial(gputime.copy_of, moved, bench.device),
        },
        inputs,
        rounds=100,
        aims={COPY: share(0.85)},
        judge=ops.near(expected, 0.02),
        ahead=AHEAD,
    )


def test_add_layernorm(bench: Bench) -> None:
    from m3fast.kernels.layernorm import add_layernorm
    from m3fast.kernels.reference import add_layernorm_ref

    tokens, width = bench.pick((TOKENS, HIDDEN), (5, 64))
    inputs = [
        tuple(_random(bench, tokens, width, seed=2 * i + j) for j in range(2)) for i in range(2)
    ]
    bias, weight, shift = (_random(bench, width, seed=9 + i) for i in range(3))
    out = torch.empty_like(inputs[0][0])

    def plain(x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        total = x.float() + residual + bias
        return F.layer_norm(total, (width,), weight.float(), shift.float(), 1e-5).to(x.dtype)

    _compare(
        bench,
        "bias + residual + LayerNorm, bf16",
        inputs,
        lambda x: add_layernorm(*x, bias, weight, shift, 1e-5, out=out),
        plain,
        3 * out.nbytes,
        add_layernorm_ref(*(t.float() for t in (*inputs[0], bias, weight, shift)), 1e-5),
        width,
    )


def test_embed_layernorm(bench: Bench) -> None:
    from m3fast.kernels.layernorm import embed_layernorm
    from m3fast.kernels.reference import embed_layernorm_ref

    tokens, width, vocab = bench.pick((TOKENS, HIDDEN, 250002), (5, 64, 100))
    word, position = (_random(bench, n, width, seed=i) for i, n in enumerate((vocab, 8194)))
    type_row, weight, shift = (_random(bench, width, seed=9 + i) for i in range(3))
    random = torch.Generator(bench.device).manual_seed(0)

    def indices(high: int) -> torch.Tensor:
        shape = (tokens,)
        return torch.randint(high, shape, generator=random, device=bench.device, dtype=torch.int32)

    inputs = [(indices(vocab), indices(512)) for _ in range(2)]
    out = word.new_empty(tokens, width)
    tables = (word, position, type_row, weight, shift)

    def plain(ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        x = word[ids].float() + position[positions] + type_row
        return F.layer_norm(x, (width,), weight.float(), shift.float(), 1e-5).to(word.dtype)

    _compare(
        bench,
        "embeddings + LayerNorm, bf16",
        inputs,
        lambda x: embed_layernorm(*x, *tables, 1e-5, out=out, check_ids=False),
        plain,
        2 * out.nbytes,  # of the word rows; the position rows come from L2
        embed_layernorm_ref(*inputs[0], *tables, 1e-5).float(),
        width,
    )


def test_bias_gelu(bench: Bench) -> None:
    """In place, so every round works on what the last one left; judged before, on a copy."""
    from m3fast.kernels.gelu import bias_gelu_
    from m3fast.kernels.reference import bias_gelu_ref

    tokens, width = bench.pick((TOKENS, FFN), (5, 64))
    inputs = [(_random(bench, tokens, width, seed=i),) for i in range(2)]
    bias = _random(bench, width, seed=9)
    x = inputs[0][0]
    expected = bias_gelu_ref(x.float(), bias.float())
    found = ops.near(expected, 0.02)(OURS, None, bias_gelu_(x.clone(), bias))
    assert not found, found

    def ours(x: tuple[torch.Tensor]) -> None:
        bias_gelu_(*x, bias)

    def plain(x: torch.Tensor) -> None:
        x.copy_(F.gelu(x.float() + bias))

    _compare(
        bench, "bias + GELU, bf16", inputs, ours, plain, 2 * x.nbytes, expected, width
    )  # fmt: skip
