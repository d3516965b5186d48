"""MaxSim at full size, in graphs and without waiting: what only a GPU shows."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from gpu.maxsim_inputs import EIGHT_BITS, ends, on, skip_float8, vectors

from m3fast.kernels import maxsim as op
from m3fast.kernels.maxsim import maxsim, quantize_vectors

pytestmark = pytest.mark.usefixtures("poisoned_memory", "fast_reduction")


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, *EIGHT_BITS], ids=str)
@pytest.mark.parametrize("tokens", [32, 64, 2500])
def test_full_size(device, rng, gap, kind, tokens):
    """At d = 1024, with the tiles that ship; against float64 rounded once."""
    skip_float8(kind, device)
    lengths = np.full(tokens // 20, 20)
    q_ends = ends([*lengths, tokens - lengths.sum()])
    d_ends = ends([*rng.integers(1, 600, 60), 8192, 1, 0])
    d = vectors(d_ends[-1], 1024, torch.float32, device)
    q = vectors(tokens, 1024, torch.float16 if kind == torch.int8 else torch.bfloat16, device)
    d, scales = quantize_vectors(d, kind) if kind in EIGHT_BITS else (d.to(kind), None)
    q = q if scales is not None else q.to(kind)
    wide = d.double() if scales is None else d.double() * scales.double()[:, None]
    best = [
        (q.double() @ wide[a:b].T).amax(1) if a < b else q.new_zeros(tokens, dtype=torch.float64)
        for a, b in pairwise(d_ends)
    ]
    products = torch.stack(best, 1)
    expected = torch.stack(
        [
            products[a:b].mean(0) if a < b else products.new_zeros(len(best))
            for a, b in pairwise(q_ends)
        ]
    )
    scores = maxsim(q, q_ends, d, d_ends, doc_scales=scales)
    assert gap(scores, expected) < 2e-5
    pairs = np.stack([rng.integers(0, len(q_ends) - 1, 99), rng.integers(0, len(best), 99)], 1)
    scores = maxsim(q, q_ends, d, d_ends, pairs, doc_scales=scales)
    assert gap(scores, expected[pairs[:, 0], pairs[:, 1]]) < 2e-5


@pytest.mark.gpu
def test_no_call_waits(device, rng):
    """torch refuses to wait for the device, wherever offsets and pairs are."""
    q, d = (vectors(n, 128, torch.float16, device) for n in (40, 900))
    host = [ends([30, 10]), ends([400, 100, 400]), np.array([[0, 2], [1, 1]])]
    there = on(device, *host)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for q_ends, d_ends, pairs in (host, there):
            maxsim(q, q_ends, d, d_ends, top_k=2)
            maxsim(q, q_ends, d, d_ends, pairs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_in_a_graph(device, rng):
    """With offsets and pairs on the device nothing waits for it, so a graph can hold the call."""
    q, d = (vectors(n, 128, torch.float16, device) for n in (40, 900))
    q_ends, d_ends = on(device, ends([30, 10]), ends([400, 100, 400]))
    pairs = torch.tensor([[0, 2], [1, 1]], device=device)

    def run():
        return maxsim(q, q_ends, d, d_ends), maxsim(q, q_ends, d, d_ends, pairs)

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run()
    d.copy_(vectors(900, 128, torch.float16, device))
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(found, run(), strict=True))


@pytest.mark.gpu
def test_no_shape_compiles_anew(device, rng, monkeypatch):
    import triton

    def call(tokens, rows, pairs):
        q_ends, d_ends = ends([tokens]), ends([rows])
        q, d = (vectors(n, 128, torch.bfloat16, device) for n in (tokens, rows))
        maxsim(q, q_ends, d, d_ends)
        maxsim(q, q_ends, d, d_ends, np.zeros((pairs, 2), np.int64))

    for tokens in (1, 16, 33, 65, 2049):
        call(tokens, 16, 1)
    compiled = []
    monkeypatch.setattr(
        triton.knobs.runtime,
        "jit_post_compile_hook",
        lambda **found: compiled.append(found["repr"]),
    )
    for _ in range(100):
        call(*(int(rng.integers(1, top)) for top in (3000, 5000, 600)))
    assert not compiled


@pytest.mark.gpu
def test_float8_on_an_older_gpu(device, monkeypatch):
    monkeypatch.setattr(op.dispatch, "arch", lambda _: 80)
    values, scales = quantize_vectors(torch.ones(3, 16, device=device), torch.float8_e4m3fn)
    q = torch.ones(1, 16, device=device)
    with pytest.warns(RuntimeWarning, match=r"compute capability 8\.9"):
        assert maxsim(q, ends([1]), values, ends([3]), doc_scales=scales).item() == 16
