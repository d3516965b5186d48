"""MaxSim of one query over ragged documents, beside the matrix product that it cannot avoid."""

from __future__ import annotations

import json

import numpy as np
import torch

from bench import child, child_maxsim, measure
from bench.harness import OURS, Bench, Row, share
from bench.measure import Absent, Sampled

Packed = tuple[torch.Tensor, torch.Tensor, np.ndarray]  # queries, documents, document offsets


def _judge(name: str, truth: tuple[str, torch.Tensor, Packed], found: object) -> str:
    """The product reduced per document, outside the clock, is what m3fast must return."""
    _, product, (_, _, ends) = truth
    if name != OURS:
        return ""
    best = torch.stack([part.amax(0).mean() for part in product.tensor_split(ends[1:-1].tolist())])
    gap = (best - found).abs().max().item()
    return "" if gap <= 1e-5 else f"scores off by {gap:.2g}"


def test_maxsim_gemm(bench: Bench) -> None:
    """The ceiling: torch.mm of all document tokens with the query's."""
    from m3fast.kernels.maxsim import maxsim

    docs, dim = bench.pick((300, 1024), (10, 64))
    inputs = [_packed(docs, dim, seed) for seed in range(2)]
    starts = np.array([0, 32])

    def gemm(packed: Packed) -> tuple[str, torch.Tensor, Packed]:
        q, d, _ = packed
        return "product", torch.mm(d, q.T), packed

    def ours(packed: Packed) -> torch.Tensor:
        q, d, ends = packed
        return maxsim(q, starts, d, ends)[0]

    tokens = int(inputs[0][2][-1])
    bench.compare(
        Row(
            f"MaxSim, 32 query tokens, {docs} documents, d = {dim}, fp32",
            shape=f"{docs} documents of 150 to 450 tokens, d = {dim}",
            tokens=tokens,
            note="torch.mm computes the products only, without maxima and sums",
        ),
        {"torch.mm": lambda: gemm, OURS: lambda: ours},
        inputs,
        rounds=40,
        aims={"torch.mm": share(0.85)},
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
