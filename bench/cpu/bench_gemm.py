"""The encoder's matrix products by m3fast and by torch, and memory bandwidth.

A layer's row is its four products in turn, of layers that rotate, so that weights come from memory
as they do in an encoder; the rows of one product show which shape is how far from the ceiling.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from bench.core import eight, record, roof
from bench.core.dtypes import DTYPES
from bench.core.harness import OURS, Bench, Row
from bench.core.measure import Absent, Candidate, Maker
from bench.core.roof import Product
from bench.peers import ops

ANY_DEVICE = True
ROWS = {"cpu": (20, 256, 2558), "cuda": (20, 4096, 32768)}
LAYERS = 3  # 150 MB of fp32 weights, beyond the caches
AHEAD = 2e-3
# Outputs are near 1; sums of 4,096 products in another order, and the rounding of the output. Of
# int8 the rounding of both factors, to a row's 127th: sums have a deviation of 0.011, and up to
# 0.027 where x is rounded as a whole to 7 bits; of ten million the largest is at 5.3 deviations.
ALLOWED = {"fp32": 1e-5, "bf16": 1e-2, "int8": 4e-2}
INT8_NOTE = (
    "m3fast and *torch dynamic* quantise x from fp32 and scale y, in their times; the others "
    "multiply int8 values and are limits"
)
DYNAMIC = "torch, dynamic"

Layers = list[list[tuple[torch.Tensor, torch.Tensor]]]  # by layer, x [T, K] and W [N, K]
Ways = list[list[tuple[torch.Tensor, Product]]]  # by layer, its products and their inputs


@pytest.fixture(autouse=True)
def _inference() -> Any:
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("size", [0, 1, 2])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
def test_layer(bench: Bench, dtype: str, size: int) -> None:
    _compare(bench, dtype, ROWS[bench.device.type][size], list(roof.shapes()), "a layer")


@pytest.mark.parametrize("name", list(roof.shapes()))
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
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
    kind, device, int8 = DTYPES[dtype], bench.device, dtype == "int8"
    if int8 and device.type == "cuda":
        pytest.skip("int8 is a CPU's")
    if bench.scale.name == "quick" and device.type == "cuda" and dtype == "fp32":
        pytest.skip("not in a quick run")
    rows = bench.pick(rows, min(rows, 24))
    shapes = roof.shapes(bench.pick(roof.HIDDEN, 64))
    sizes = [shapes[name] for name in names]
    work = sum(2.0 * rows * n * k for n, k in sizes)
    values = sum(n * k + rows * (n + k) for n, k in sizes) * kind.itemsize
    if int8:  # x and y are fp32
        values = sum(n * k + 4 * rows * (n + k) for n, k in sizes)
    row = Row(
        f"gemm, {what}, {rows:,} rows, {dtype}",
        shape=", ".join(f"{rows} x {k} by {k} x {n}" for n, k in sizes),
        dtype=str(kind).removeprefix("torch."),
        unit="TFLOP/s",
        work=work,
        moved=float(values),
        note=f"weights of {LAYERS} layers in turn" + f"; {INT8_NOTE}" * int8,
    )
    lacks = "" if device.type == "cuda" else record.lacks(dtype)
    bench.need(row, not lacks, lacks)
    random = torch.Generator(device).manual_seed(rows)

    def normal(*size: int) -> torch.Tensor:
        values = torch.randn(*size, generator=random, device=device)
        return values if int8 else values.to(kind)

    layers = [[(normal(rows, k), normal(n, k) / k**0.5) for n, k in sizes] for _ in range(LAYERS)]
    expected = torch.cat([(x.double() @ w.double().t()).float() for x, w in layers[0]], 1)
    makers = {
        OURS: partial(_ours, layers),
        "torch.mm": partial(_torch, layers, "torch.mm"),
        "oneDNN, packed": partial(_torch, layers, "oneDNN, packed"),
    }
    judge = _near(expected, ALLOWED[dtype])
    if int8:
        makers, judge = _int8(layers, judge)
    bench.compare(
        row,
        makers,
        list(range(LAYERS)),
        rounds=50 if rows > 256 else 200,
        judge=judge,
        ahead=AHEAD,
    )


def _int8(layers: Layers, near: ops.Judge) -> tuple[dict[str, Maker], ops.Judge]:
    """Candidates, and their judge: it scales the sums of those that do not."""
    top = 63 if eight.saturates() else 127  # of weights: two products with 255 then fit 16 bits
    quantised = [[(*eight.quantise(x), *eight.quantise(w, top)) for x, w in its] for its in layers]
    whole = [[(x, w) for x, _, w, _ in its] for its in quantised]
    ways: dict[str, Maker] = {name: partial(_torch, whole, name) for name in eight.names()}
    makers: dict[str, Maker] = {
        OURS: lambda: _candidate([[(x, _int8_linear(w)) for x, w in its] for its in layers]),
        DYNAMIC: lambda: _candidate([[(x, eight.dynamic(w)) for x, w in its] for its in layers]),
        **ways,
    }

    def judge(name: str, truth: Any, found: list[torch.Tensor]) -> str:
        if name in ways:
            scales = [(x, w.t()) for _, x, _, w in quantised[0]]
            found = [y.float() * x * w for y, (x, w) in zip(found, scales, strict=True)]
        return near(name, truth, found)

    return makers, judge


def _int8_linear(weight: torch.Tensor) -> Product:
    """m3fast's: fp32 in and out, by weights in int8 with a scale per output."""
    from m3fast.kernels import int8  # pyright: ignore
    from m3fast.kernels.linear import linear

    packed: Any = int8.pack_int8(int8.quantize_table(weight))
    return lambda x: linear(x, packed)


def _ours(layers: Layers) -> Candidate:
    """As the encoder calls it: weights packed where it packs them, into buffers, without biases."""
    from m3fast.kernels.linear import linear, pack_weight

    def product(x: torch.Tensor, weight: torch.Tensor) -> Product:
        out, its = x.new_empty(len(x), len(weight)), pack_weight(weight) if x.is_cpu else weight
        return lambda x: linear(x, its, out=out)

    return _candidate([[(x, product(x, w)) for x, w in layer] for layer in layers])


def _torch(layers: Layers, way: str) -> Candidate:
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
