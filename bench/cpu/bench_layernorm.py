"""The encoder's elementwise ops on a CPU, beside torch and a copy of as many bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from bench.core import record
from bench.core.harness import OURS, Bench, Row, share, times
from bench.core.measure import Absent, Candidate
from bench.peers import ops

TOKENS, HIDDEN, FFN = 8192, 1024, 4096
EPS = 1e-5
COPY, EAGER, COMPILED = "copy of as many bytes", "torch", "torch.compile"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TOLERANCE = {"fp32": 1e-5, "bf16": 0.02}
both = pytest.mark.parametrize("dtype", list(DTYPES))


def _random(*shape: int, dtype: str, seed: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=random).to(DTYPES[dtype])


def _copy(moved: int) -> Candidate:
    source = torch.randn(max(moved // 8, 1))
    target = torch.empty_like(source)

    def run(_: Any) -> None:
        target.copy_(source)

    return run


def _compiled(function: Callable[..., Any], first: Sequence[torch.Tensor]) -> Candidate:
    """torch.compile's code for these shapes, into kept buffers as everybody's."""
    # A shape at a time: code for shapes unknown would be slower.
    run = torch.compile(function, dynamic=False)
    try:
        with torch.inference_mode():
            run(*first)  # it compiles
    except Exception as error:
        line = str(error).strip().split("\n")[0][:80]
        raise Absent(f"cannot compile here: {type(error).__name__}: {line}") from error
    return lambda x: run(*x)


def _row(bench: Bench, name: str, dtype: str, rows: int, width: int, touched: int) -> Row:
    """`touched` tensors of this size are read or written; skips where bf16 has no instructions."""
    moved = float(touched * rows * width * DTYPES[dtype].itemsize)
    row = Row(
        f"{name} on a CPU, {dtype}",
        shape=f"{rows} x {width}",
        dtype=str(DTYPES[dtype]).removeprefix("torch."),
        tokens=rows,
        moved=moved,
        note=f"{moved / 1e6:.0f} MB read and written; results go into kept buffers",
    )
    bench.need(row, dtype == "fp32" or record.has_bf16(), "awaits a CPU with AVX512_BF16 or AMX")
    return row


def _compare(
    bench: Bench,
    row: Row,
    dtype: str,
    inputs: list[tuple[torch.Tensor, ...]],
    candidates: dict[str, Callable[[], Candidate]],
    expected: torch.Tensor,
    warm: Any = None,
) -> None:
    assert row.moved is not None
    with torch.inference_mode():
        bench.compare(
            row,
            candidates | {COPY: partial(_copy, int(row.moved))},
            inputs,
            rounds=30,
            aims={COPY: share(0.85), EAGER: times(1)},
            warm=warm,
            judge=ops.near(expected, TOLERANCE[dtype]),
        )


def _layer_norm(
    x: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor, out: torch.Tensor
) -> torch.Tensor:
    """torch's own into a kept buffer: fresh pages would be most of its time."""
    stats = [torch.empty(len(x), 1, dtype=x.dtype) for _ in range(2)]
    torch.ops.aten.native_layer_norm.out(
        x, x.shape[1:], weight, shift, EPS, out0=out, out1=stats[0], out2=stats[1]
    )
    return out


@both
def test_add_layernorm(bench: Bench, dtype: str) -> None:
    from m3fast.kernels.layernorm import add_layernorm
    from m3fast.kernels.reference import add_layernorm_ref

    tokens, width = bench.pick((TOKENS, HIDDEN), (5, 64))
    row = _row(bench, "bias + residual + LayerNorm", dtype, tokens, width, 3)
    make = partial(_random, dtype=dtype)
    inputs = [tuple(make(tokens, width, seed=2 * i + j) for j in range(2)) for i in range(2)]
    bias, weight, shift = params = [make(width, seed=9 + i) for i in range(3)]
    out, ours = torch.empty_like(inputs[0][0]), torch.empty_like(inputs[0][0])
    total, rows = torch.empty_like(out), torch.empty_like(out)

    def eager(x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        torch.add(x, residual, out=total).add_(bias)
        return _layer_norm(total, weight, shift, rows)

    def fused(x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        y = x.float() + residual.float() + bias.float()
        return out.copy_(F.layer_norm(y, (width,), weight.float(), shift.float(), EPS))

    _compare(
        bench, row, dtype, inputs,
        {
            OURS: lambda: lambda x: add_layernorm(*x, *params, EPS, out=ours),
            EAGER: lambda: lambda x: eager(*x),
            COMPILED: partial(_compiled, fused, inputs[0]),
        },
        add_layernorm_ref(*(t.float() for t in (*inputs[0], *params)), EPS),
    )  # fmt: skip


@both
def test_embed_layernorm(bench: Bench, dtype: str) -> None:
    from m3fast.kernels.layernorm import embed_layernorm
    from m3fast.kernels.reference import embed_layernorm_ref

    tokens, width, vocab = bench.pick((TOKENS, HIDDEN, 100_000), (5, 64, 100))
    # Word rows and results; rows of positions come from the caches.
    row = _row(bench, "embeddings + LayerNorm", dtype, tokens, width, 2)
    make = partial(_random, dtype=dtype)
    word, position = make(vocab, width, seed=0), make(514, width, seed=1)
    type_row, weight, shift = (make(width, seed=9 + i) for i in range(3))
    random = torch.Generator().manual_seed(0)

    def indices(high: int) -> torch.Tensor:
        return torch.randint(high, (tokens,), generator=random, dtype=torch.int32)

    inputs = [(indices(vocab), indices(512)) for _ in range(2)]
    out, ours = word.new_empty(tokens, width), word.new_empty(tokens, width)
    total, at, rows = (torch.empty_like(out) for _ in range(3))
    tables = (word, position, type_row, weight, shift)

    def eager(ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        torch.index_select(word, 0, ids, out=total)
        torch.index_select(position, 0, positions, out=at)
        total.add_(at).add_(type_row)
        return _layer_norm(total, weight, shift, rows)

    def fused(ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        x = word[ids].float() + position[positions] + type_row
        return out.copy_(F.layer_norm(x, (width,), weight.float(), shift.float(), EPS))

    _compare(
        bench, row, dtype, inputs,
        {
            OURS: lambda: lambda x: embed_layernorm(*x, *tables, EPS, out=ours, check_ids=False),
            EAGER: lambda: lambda x: eager(*x),
            COMPILED: partial(_compiled, fused, inputs[0]),
        },
        embed_layernorm_ref(*inputs[0], *(t.float() for t in tables), EPS),
    )  # fmt: skip


@both
def test_bias_gelu(bench: Bench, dtype: str) -> None:
    """In place, so each candidate has inputs of its own: the first round's are as they were."""
    from m3fast.kernels.gelu import bias_gelu_
    from m3fast.kernels.reference import bias_gelu_ref

    tokens, width = bench.pick((TOKENS // 2, FFN), (5, 64))
    row = _row(bench, "bias + GELU", dtype, tokens, width, 2)
    inputs = [(_random(tokens, width, dtype=dtype, seed=i),) for i in range(2)]
    warm = (_random(tokens, width, dtype=dtype, seed=5),)
    bias = _random(width, dtype=dtype, seed=9)

    def eager(x: torch.Tensor) -> torch.Tensor:
        x.add_(bias)
        return torch.ops.aten.gelu.out(x, out=x)

    def fused(x: torch.Tensor) -> torch.Tensor:
        return x.copy_(F.gelu(x.float() + bias.float()))

    def own(make: Callable[[], Candidate]) -> Candidate:
        run = make()
        mine = {id(x): (x[0].clone(),) for x in (*inputs, warm)}
        return lambda x: run(mine[id(x)])

    _compare(
        bench, row, dtype, inputs,
        {
            n: partial(own, make)
            for n, make in {
                OURS: lambda: lambda x: bias_gelu_(*x, bias),
                EAGER: lambda: lambda x: eager(*x),
                COMPILED: partial(_compiled, fused, (warm[0].clone(),)),
            }.items()
        },
        bias_gelu_ref(inputs[0][0].float(), bias.float()),
        warm=warm,
    )  # fmt: skip
