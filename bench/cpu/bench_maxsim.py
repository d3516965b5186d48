"""MaxSim of one query over ragged documents, beside the matrix product that it cannot avoid."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch

from bench.core import child, measure, roof
from bench.core.harness import OURS, Bench, Row, share
from bench.core.measure import Absent, Candidate, Sampled
from bench.cpu import child_maxsim

Packed = tuple[torch.Tensor, torch.Tensor, np.ndarray]  # queries, documents, document offsets


SAME, WIDE = "bare GEMM, same shape", "bare GEMM, same work, 4096 columns"


def _judge(name: str, truth: tuple[torch.Tensor, np.ndarray], found: Any) -> str:
    """The product reduced per document, outside the clock, is what m3fast must return."""
    product, ends = truth
    if name != OURS:
        return ""
    best = torch.stack([part.amax(0).mean() for part in product.tensor_split(ends[1:-1].tolist())])
    gap = (best - found).abs().max().item()
    return "" if gap <= 1e-5 else f"scores off by {gap:.2g}"


def _same_shape(bench: Bench, inputs: list[Packed]) -> tuple[str, Candidate]:
    """The quickest of torch's ways to documents x query, into a kept buffer where there is one."""
    rows, columns = max(len(x[1]) for x in inputs), len(inputs[0][0])
    out = torch.empty(rows * columns)
    ops = torch.ops.mkldnn

    def queries_first(x: Packed) -> torch.Tensor:
        return torch.mm(x[0], x[1].T, out=out[: columns * len(x[1])].view(columns, -1)).T

    def documents_first(x: Packed) -> torch.Tensor:
        return torch.mm(x[1], x[0].T, out=out[: columns * len(x[1])].view(-1, columns))

    def onednn(x: Packed) -> torch.Tensor:
        # The next search has another query, so reordering it is part of the work.
        packed = ops._reorder_linear_weight(x[0], len(x[1]))
        return ops._linear_pointwise(x[1], packed, None, "none", [], "")

    ways = {"torch.mm, query first": queries_first, "torch.mm, documents first": documents_first}
    if torch.backends.mkldnn.is_available():
        ways["oneDNN, documents first"] = onednn
    return _fastest(bench, ways, inputs[0])


def _wide(bench: Bench, tokens: int, dim: int) -> tuple[str, Candidate]:
    """As many operations in the shape of the encoder's layers, which shows what the CPU can do.

    Skinny products are MKL's weak side: 39 GFLOP/s a core, and 73 in the FFN's shape (AVX2).
    """
    columns = bench.pick(4096, 64)
    left, right = torch.randn(round(32 * tokens / columns), dim), torch.randn(columns, dim)
    ways = roof.products(left, right)
    return _fastest(bench, {name: lambda _, run=run: run(left) for name, run in ways.items()}, None)


def _fastest(bench: Bench, ways: dict[str, Candidate], x: Any) -> tuple[str, Candidate]:
    with torch.inference_mode():
        best = next(iter(ways)) if bench.scale.smoke else measure.fastest(ways, x, x)
    return best, ways[best]


def test_maxsim_gemm(bench: Bench) -> None:
    """Beside the bare product in the same shape, and one of equal work in a better shape."""
    from m3fast.kernels.maxsim import maxsim

    docs, dim = bench.pick((300, 1024), (10, 64))
    inputs = [_packed(docs, dim, seed) for seed in range(2)]
    tokens = int(inputs[0][2][-1])
    starts = np.array([0, 32])
    same, product = _same_shape(bench, inputs)
    wide, wide_product = _wide(bench, tokens, dim)

    def ours(x: Packed) -> torch.Tensor:
        return maxsim(x[0], starts, x[1], x[2])[0]

    with torch.inference_mode():
        bench.compare(
            Row(
                f"MaxSim, 32 query tokens, {docs} documents, d = {dim}, fp32",
                shape=f"{docs} documents of 150 to 450 tokens, d = {dim}",
                tokens=tokens,
                work=2.0 * 32 * tokens * dim,
                moved=4.0 * tokens * dim,
                corpus=docs,
                note="bare GEMMs make the products only, no maxima and sums, each the fastest of "
                f"torch's ways: same shape {same}; 4096 columns {wide}",
            ),
            {
                SAME: lambda: lambda x: (product(x), x[2]),
                OURS: lambda: ours,
                WIDE: lambda: wide_product,
            },
            inputs,
            rounds=30,
            aims={SAME: share(0.85)},
            judge=_judge,
        )


def _packed(docs: int, dim: int, seed: int) -> Packed:
    q, d, ends = child_maxsim.arrays(docs, dim, seed)
    return torch.from_numpy(q), torch.from_numpy(d), ends


def test_maxsim_cpu(bench: Bench) -> None:
    """maxsim-cpu, in a process of its own and at d = 128: 0.1.0 crashes at d = 1024."""
    docs = bench.pick(300, 10)
    tokens = int(_packed(docs, 128, 0)[2][-1])
    row = Row(
        f"MaxSim, 32 query tokens, {docs} documents, d = 128, fp32",
        shape=f"{docs} documents of 150 to 450 tokens, d = 128",
        tokens=tokens,
        work=2.0 * 32 * tokens * 128,
        moved=4.0 * tokens * 128,
        corpus=docs,
        note="in a process of its own, interleaved as everywhere",
    )
    try:
        found = json.loads(
            child.run(
                "bench.cpu.child_maxsim",
                str(docs),
                str(bench.pick(40, 1)),
                str(bench.threads),
            )
        )
    except Absent as reason:
        bench.need(row, False, str(reason))
        return
    samples = {name: Sampled(**its) for name, its in found.items()}
    bench.add(row, samples, {}, {}, measure.ratio)
