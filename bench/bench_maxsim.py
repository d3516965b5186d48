"""MaxSim of one query over ragged documents, beside the matrix product that it cannot avoid."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch

from bench import child, child_maxsim, measure
from bench.harness import OURS, Bench, Row, share
from bench.measure import Absent, Candidate, Sampled

Packed = tuple[torch.Tensor, torch.Tensor, np.ndarray]  # queries, documents, document offsets


SAME, WIDE = "torch.mm, same shape", "torch.mm, same work, 4096 columns"


def _judge(name: str, truth: tuple[torch.Tensor, np.ndarray], found: Any) -> str:
    """The product reduced per document, outside the clock, is what m3fast must return."""
    product, ends = truth
    if name != OURS:
        return ""
    best = torch.stack([part.amax(0).mean() for part in product.tensor_split(ends[1:-1].tolist())])
    gap = (best - found).abs().max().item()
    return "" if gap <= 1e-5 else f"scores off by {gap:.2g}"


def test_maxsim_gemm(bench: Bench) -> None:
    """Beside torch.mm in the same shape, and beside torch.mm of equal work in a better one."""
    from m3fast.kernels.maxsim import maxsim

    docs, dim = bench.pick((300, 1024), (10, 64))
    inputs = [_packed(docs, dim, seed) for seed in range(2)]
    tokens = int(inputs[0][2][-1])
    starts = np.array([0, 32])
    products: dict[str, Candidate] = {
        "documents x query": lambda x: torch.mm(x[1], x[0].T),
        "query x documents": lambda x: torch.mm(x[0], x[1].T).T,
    }
    best = measure.fastest(products, inputs[0], inputs[0])
    # Skinny products are MKL's weak side (39 GFLOP/s a core, 73 in the FFN's shape), and so is a
    # square of side 1718 (49): only the FFN's shape shows what the processor can do.
    columns = bench.pick(4096, 64)
    left, right = torch.randn(round(32 * tokens / columns), dim), torch.randn(columns, dim)

    def ours(x: Packed) -> torch.Tensor:
        return maxsim(x[0], starts, x[1], x[2])[0]

    bench.compare(
        Row(
            f"MaxSim, 32 query tokens, {docs} documents, d = {dim}, fp32",
            shape=f"{docs} documents of 150 to 450 tokens, d = {dim}",
            tokens=tokens,
            note=f"torch.mm makes the products only, no maxima and sums; same shape: {best}, the "
            "faster of both orders",
        ),
        {
            SAME: lambda: lambda x: (products[best](x), x[2]),
            OURS: lambda: ours,
            WIDE: lambda: lambda x: torch.mm(left, right.T),
        },
        inputs,
        rounds=40,
        aims={SAME: share(0.85)},
        judge=_judge,
    )


def _packed(docs: int, dim: int, seed: int) -> Packed:
    q, d, ends = child_maxsim.arrays(docs, dim, seed)
    return torch.from_numpy(q), torch.from_numpy(d), ends


def test_maxsim_cpu(bench: Bench) -> None:
    """maxsim-cpu, in a process of its own and at d = 128: 0.1.0 crashes at d = 1024."""
    docs = bench.pick(300, 10)
    row = Row(
        f"MaxSim, 32 query tokens, {docs} documents, d = 128, fp32",
        shape=f"{docs} documents of 150 to 450 tokens, d = 128",
        note="in a process of its own, interleaved as everywhere",
    )
    try:
        found = json.loads(
            child.run(
                "bench.child_maxsim",
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
