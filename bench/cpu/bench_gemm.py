"""The encoder's matrix products by m3fast and by torch, and memory bandwidth.

A layer's row is its four products in turn, of layers that rotate, so that weights come from memory
as they do in an encoder; the rows of one product show which shape is how far from the ceiling.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from bench.core import record, roof
from bench.core.harness import OURS, Bench, Row
from bench.core.measure import Absent, Candidate
from bench.core.roof import Product
from bench.peers import ops

ANY_DEVICE = True
ROWS = {"cpu": (20, 256, 2558), "cuda": (20, 4096, 32768)}
LAYERS = 3  # 150 MB of fp32 weights, beyond the caches
AHEAD = 2e-3
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Outputs are near 1; sums of 4,096 products in another order, and the rounding of the output.
ALLOWED = {"fp32": 1e-5, "bf16": 1e-2}

Ways = list[list[tuple[torch.Tensor, Product]]]  # by layer, its products and their inputs


@pytest.fixture(autouse=True)
def _inference() -> Any:
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("size", [0, 1, 2])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_layer(bench: Bench, dtype: str, size: int) -> None:
    _compare(bench, dtype, ROWS[bench.device.type][size], list(roof.shapes()), "a layer")


@pytest.mark.parametrize("name", list(roof.shapes()))
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_product(bench: Bench, dtype: str, name: str) -> None:
    _compare(bench, dtype, ROWS[bench.device.type][-1], [name], name)


def test_bandwidth(bench: Bench) -> None:
    """What an operation that computes nothing can reach."""
    size = bench.pick(roof.BYTES[bench.device.type], 1 << 12)
    pair = [torch.randn(size // 4, device=bench.device) for _ in range(2)]
    row = Row("memory, copy", f"{size >> 20} MiB to as many", unit="GB/s", moved=2.0 * size)
    bench.compare(
        row,
        {"copy_": lambda: lambda i: pair[1 - i].copy_(pair[i])},
        [0, 1],
        rounds=20,
        ahead=AHEAD,
    )
    row = Row("memory, read", f"{size >> 20} MiB, no output to speak of", unit="GB/s", moved=size)
    bench.compare(
        row,
        {"sum": lambda: lambda i: pair[i].sum(), "amax": lambda: lambda i: pair[i].amax()},
        [0, 1],
        rounds=20,
        ahead=AHEAD,
    )


def _compare(bench: Bench, dtype: str, rows: int, names: list[str], what: str) -> None:
    kind, device = DTYPES[dtype], bench.device
    if bench.scale.name == "quick" and device.type == "cuda" and dtype == "fp32":
        pytest.skip("not in a quick run")
    rows = bench.pick(rows, min(rows, 24))
    shapes = roof.shapes(bench.pick(roof.HIDDEN, 64))
    sizes = [shapes[name] for name in names]
    work = sum(2.0 * rows * n * k for n, k in sizes)
    values = sum(n * k + rows * (n + k) for n, k in sizes)
    row = Row(
        f"gemm, {what}, {rows:,} rows, {dtype}",
        shape=", ".join(f"{rows} x {k} by {k} x {n}" for n, k in sizes),
        dtype=str(kind).removeprefix("torch."),
        unit="TFLOP/s",
        work=work,
        moved=float(values * kind.itemsize),
        note=f"weights of {LAYERS} layers in turn",
    )
    here = device.type == "cuda" or dtype == "fp32" or record.has_bf16()
    bench.need(row, here, "awaits a CPU with AVX512_BF16 or AMX")
    random = torch.Generator(device).manual_seed(rows)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=random, device=device).to(kind)

    layers = [[(normal(rows, k), normal(n, k) / k**0.5) for n, k in sizes] for _ in range(LAYERS)]
    expected = torch.cat([(x.double() @ w.double().t()).float() for x, w in layers[0]], 1)
    bench.compare(
        row,
        {
            OURS: partial(_ours, layers),
            "torch.mm": partial(_torch, layers, "torch.mm"),
            "oneDNN, packed": partial(_torch, layers, "oneDNN, packed"),
        },
        list(range(LAYERS)),
        rounds=50 if rows > 256 else 200,
        judge=_near(expected, ALLOWED[dtype]),
        ahead=AHEAD,
    )


def _ours(layers: list[list[tuple[torch.Tensor, torch.Tensor]]]) -> Candidate:
    """As the encoder calls it: weights packed where it packs them, into buffers, without biases."""
    from m3fast.kernels.linear import linear, pack_weight

    def product(x: torch.Tensor, weight: torch.Tensor) -> Product:
        out, its = x.new_empty(len(x), len(weight)), pack_weight(weight) if x.is_cpu else weight
        return lambda x: linear(x, its, out=out)

    return _candidate([[(x, product(x, w)) for x, w in layer] for layer in layers])


def _torch(layers: list[list[tuple[torch.Tensor, torch.Tensor]]], way: str) -> Candidate:
    if way not in roof.products(*layers[0][0]):
        raise Absent("for CPUs whose torch has oneDNN")
    ways = [[(x, roof.products(x, w)[way]) for x, w in layer] for layer in layers]
    return _candidate(ways)


def _candidate(ways: Ways) -> Candidate:
    return lambda i: [run(x) for x, run in ways[i]]


def _near(expected: torch.Tensor, allowed: float) -> ops.Judge:
    near = ops.near(expected, allowed)

    def judge(name: str, truth: Any, found: list[torch.Tensor]) -> str:
        return near(name, truth, torch.cat([part.float() for part in found], 1))

    return judge
