"""MaxSim of packed queries and ragged documents, GPU time, beside cuBLAS and two libraries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch

from bench.core import gputime
from bench.core.harness import OURS, Aim, Bench, Row, at_most, share, times
from bench.core.measure import Candidate
from bench.peers import ops

AHEAD = 2e-3
QUERY = 32
COPY = "copy of the documents"


@dataclass
class Store:
    """queries [Tq, d], docs [Td, d]; offsets int32 on the device and int64 on the host."""

    queries: torch.Tensor
    docs: torch.Tensor
    q_ends: torch.Tensor
    ends: torch.Tensor
    host: tuple[np.ndarray, np.ndarray]
    n_queries: int
    longest: int
    scales: torch.Tensor | None = None


def _store(bench: Bench, n_queries: int, docs: int, dim: int, seed: int) -> Store:
    """Documents of 300 tokens on average; vectors of length 1, as the colbert head makes them."""
    lengths = np.random.default_rng(seed).integers(*bench.pick((150, 451), (1, 40)), docs)
    random = torch.Generator(bench.device).manual_seed(seed)

    def unit(rows: int) -> torch.Tensor:
        x = torch.randn(rows, dim, generator=random, device=bench.device)
        return torch.nn.functional.normalize(x, dim=-1).half()

    q_ends, ends = ops.offsets([QUERY] * n_queries), ops.offsets(lengths)
    on_device = (torch.from_numpy(a).to(bench.device) for a in (q_ends, ends))
    return Store(
        unit(QUERY * n_queries), unit(int(ends[-1])), *on_device,
        (q_ends.astype(np.int64), ends.astype(np.int64)), n_queries, int(lengths.max()),
    )  # fmt: skip


def _expected(x: Store) -> torch.Tensor:
    docs = x.docs.float() if x.scales is None else x.docs.float() * x.scales[:, None]
    products = docs @ x.queries.float().T
    best = torch.stack([part.amax(0) for part in products.tensor_split(x.host[1][1:-1].tolist())])
    return best.view(len(best), x.n_queries, QUERY).mean(-1).T


def _compare(
    bench: Bench,
    name: str,
    inputs: list[Store],
    peers: dict[str, Callable[[], Candidate]],
    aims: dict[str, Aim],
) -> None:
    from m3fast.kernels.maxsim import maxsim

    first = inputs[0]
    tokens, dim = first.docs.shape

    def ours(x: Store) -> torch.Tensor:
        more = {} if x.scales is None else {"doc_scales": x.scales}
        return maxsim(x.queries, x.host[0], x.docs, x.host[1], **more)

    bench.compare(
        Row(
            name,
            shape=f"{first.n_queries} queries of {QUERY} tokens, {len(first.ends) - 1} documents "
            f"of {bench.pick('150 to 450', 'few')} tokens, d = {dim}",
            dtype=str(first.docs.dtype).removeprefix("torch."),
            tokens=tokens,
            unit="s" if first.n_queries == 1 else "TFLOP/s",
            # Of 8-bit documents the limit is to read them: there is no 8-bit product of the roof.
            work=2.0 * tokens * dim * QUERY * first.n_queries if first.scales is None else None,
            moved=float(first.docs.nbytes),
            corpus=len(first.ends) - 1,
            note=f"GPU time; {first.docs.nbytes / 1e6:.0f} MB of documents; offsets come from the "
            "host, as in a search",
        ),
        {OURS: lambda: ours, **peers},
        inputs,
        rounds=100,
        aims=aims,
        judge=ops.near(_expected(first), 0.01),
        ahead=AHEAD,
    )


@pytest.mark.parametrize("dim", [128, pytest.param(1024, marks=pytest.mark.first)])
def test_maxsim_one_query(bench: Bench, dim: int) -> None:
    docs = bench.pick(1000, 3)
    dim = bench.pick(dim, dim // 16)
    inputs = [_store(bench, 1, docs, dim, seed) for seed in range(2)]
    device = bench.device
    # A copy reads and writes: half the documents' bytes, twice.
    moved = inputs[0].docs.nbytes
    wide = dim == 1024
    _compare(
        bench,
        f"MaxSim on the GPU, 1 query, {docs} documents, d = {dim}, fp16",
        inputs,
        {
            "cuBLAS + segment max": ops.segment_max,
            "late-interaction-kernels": partial(ops.late_interaction, device),
            "flash-maxsim": partial(ops.flash_maxsim, device),
            COPY: partial(gputime.copy_of, moved, device),
        },
        {
            "cuBLAS + segment max": times(1.05),
            "late-interaction-kernels": times(2),
            "flash-maxsim": times(2),
            COPY: share(0.85),
        }
        if wide
        else {COPY: share(0.85)},
    )


def test_maxsim_many_queries(bench: Bench) -> None:
    queries, docs, dim = bench.pick((64, 1000, 1024), (3, 3, 64))
    inputs = [_store(bench, queries, docs, dim, seed) for seed in range(2)]
    work = 2.0 * len(inputs[0].docs) * dim * QUERY * queries
    _compare(
        bench,
        f"MaxSim on the GPU, {queries} queries, {docs} documents, d = {dim}, fp16",
        inputs,
        {
            "cuBLAS + segment max": ops.segment_max,
            "late-interaction-kernels": partial(ops.late_interaction, bench.device),
        },
        {OURS: at_most(float(f"{work / 500e12:.3g}"), " s")},
    )


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn"])
def test_maxsim_quantised(bench: Bench, dtype: str) -> None:
    """Documents of a byte per value with a scale per vector, read as they are."""
    from m3fast.kernels.maxsim import quantize_vectors

    docs, dim = bench.pick((1000, 1024), (3, 64))
    if dtype != "int8" and bench.scale.smoke:
        pytest.skip("fp8 needs sm_89")
    inputs = []
    for seed in range(2):
        x = _store(bench, 1, docs, dim, seed)
        values, scales = quantize_vectors(x.docs, getattr(torch, dtype))
        inputs.append(replace(x, docs=values, scales=scales))
    _compare(
        bench,
        f"MaxSim on the GPU, 1 query, {docs} documents, d = {dim}, {dtype} documents",
        inputs,
        {COPY: partial(gputime.copy_of, inputs[0].docs.nbytes, bench.device)},
        {COPY: share(0.85)},
    )
