"""What only a GPU can show of its runner: bf16, CUDA graphs, batches and streams side by side."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import TINY_VOCAB, make_checkpoint
from gpurunners import ids_of, random_ids
from nearness import as_near, lexical_weights, near, same

from m3fast import Engine
from m3fast.runner import buckets
from m3fast.runner.buckets import BUCKETS
from m3fast.runner.gpu import GpuRunner
from m3fast.runner.transfer import Transfer


def as_near_as_the_cpu(path: Path, ids: list[list[int]]) -> None:
    """bf16 on the GPU is as near to fp32 as bf16 on the CPU, twice over, text by text."""
    exact, plain, found = (
        Engine.from_pretrained(path, device=device, dtype=dtype).encode(ids)
        for device, dtype in (("cpu", "float32"), ("cpu", "bfloat16"), ("cuda", "bfloat16"))
    )
    others = exact.dense @ exact.dense.T - 2 * np.eye(len(ids))
    assert others.max() < 0.98, "texts must differ for a fault to show"
    given = (exact, plain, found)
    for parts, ends in (
        ([x.dense for x in given], np.arange(len(ids) + 1)),
        ([x.colbert.values for x in given], exact.colbert.offsets),
        lexical_weights(*given),
    ):
        e, p, f = map(torch.from_numpy, parts)
        as_near(f.bfloat16(), e, p, ends.tolist())


@pytest.mark.gpu
def test_full_width_against_the_cpu(big, rng) -> None:
    as_near_as_the_cpu(big, random_ids(rng, TINY_VOCAB, 16, 250))


@pytest.mark.gpu
@pytest.mark.parametrize("sizes", [BUCKETS, (32,)], ids=["bucket", "exact"])
def test_24_layers(tmp_path, rng, monkeypatch, sizes) -> None:
    monkeypatch.setattr(buckets, "BUCKETS", sizes)
    deep = make_checkpoint(tmp_path, hidden=256, heads=4, ffn=1024, layers=24, deep=True)
    as_near_as_the_cpu(deep, random_ids(rng, TINY_VOCAB, 12, 200))


@pytest.mark.gpu
@pytest.mark.parametrize("pooling", ["cls", "mean", "mcls"])
def test_graphs_equal_eager(big, rng, pooling, shapes) -> None:
    graphed = Engine.from_pretrained(big, device="cuda", pooling=pooling)
    eager = Engine.from_pretrained(big, device="cuda", pooling=pooling)
    eager.runners = [
        GpuRunner(eager.config, eager.runner.weights, eager.device, graphs=False)
    ]
    for lengths in [[20], [60], [30] * 8, [500] * 3, [33] * 40, [4000], [700] * 11] * 3:
        ids = ids_of(rng, TINY_VOCAB, lengths)
        same(eager.encode(ids), graphed.encode(ids), 0.0)
    assert {bucket for bucket, _ in shapes} == {32, 64, 256, 1536, 4096, 8192}
    # The first batch of an engine gives the largest bucket its size, which no graph does.
    assert {key[:2] for key in graphed.runner.graphs.keys} == {
        shape for shape in shapes if shapes.count(shape) >= 6
    }
    assert len(eager.runners[0].graphs) == 0


@pytest.mark.gpu
@pytest.mark.parametrize("sizes", [BUCKETS, (32,)], ids=["buckets", "exact"])
def test_several_batches_in_flight(path, rng, monkeypatch, sizes) -> None:
    """Every row, while its neighbours are moved in and out of the same memory, all too late."""
    monkeypatch.setattr(buckets, "BUCKETS", sizes)
    fetch = Transfer.fetch

    def late(self, *given):
        for stream in (self.stream, torch.cuda.current_stream()):
            with torch.cuda.stream(stream):
                torch.cuda._sleep(10_000_000)  # of a GPU's cycles: milliseconds
        return fetch(self, *given)

    monkeypatch.setattr(Transfer, "fetch", late)
    given = dict(dtype="float32", token_budget=6000)
    ours, plain = (Engine.from_pretrained(path, device=d, **given) for d in ("cuda", "cpu"))
    ids = random_ids(rng, TINY_VOCAB, 3000, 60)
    expected = plain.encode(ids)
    for _ in range(3):
        near(expected, ours.encode(ids), 2e-4)


@pytest.mark.gpu
def test_a_thousand_ragged_batches(path, rng) -> None:
    ours, plain = (
        Engine.from_pretrained(path, device=d, dtype="float32") for d in ("cuda", "cpu")
    )
    batches = [
        random_ids(rng, TINY_VOCAB, int(rng.integers(1, 40)), int(rng.choice([8, 30, 128])))
        for _ in range(1000)
    ]
    expected, begin = plain.encode([ids for batch in batches for ids in batch]), 0
    for batch in batches:
        near(expected[begin : begin + len(batch)], ours.encode(batch), 2e-4)
        begin += len(batch)


ORDERED = """
import sys
import torch
from m3fast import Engine
from m3fast.runner.graphs import Graphs
from m3fast.kernels import native

native.cuda_library = lambda *_: None  # torch sees what torch launches
for pooling in ("cls", "mean", "mcls"):
    engine = Engine.from_pretrained(sys.argv[1], device="cuda", pooling=pooling, token_budget=9000)
    engine.runner.graphs = Graphs(None)
    texts = [[0, *range(4, 4 + n % 400), 2] for n in range(0, 16000, 53)]
    for some in (texts, texts[:2], texts[:20], texts[:40], texts):
        engine.encode(some)
    ids = torch.arange(12, device="cuda").view(2, 6)
    engine.runner.hidden_states(ids + 3, torch.arange(12).view(2, 6) < 10).cpu()
print("in order")
"""


@pytest.mark.gpu
def test_streams_are_ordered(path) -> None:
    """torch's sanitizer finds no access that another stream's does not wait for."""
    run = subprocess.run(
        [sys.executable, "-c", ORDERED, str(path)],
        env=os.environ | {"TORCH_CUDA_SANITIZER": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.stdout == "in order\n", run.stderr


@pytest.mark.gpu
def test_8192_tokens(big, rng) -> None:
    ours = Engine.from_pretrained(big, device="cuda")
    ids = random_ids(rng, TINY_VOCAB, 3, 50)
    (long,) = ids_of(rng, TINY_VOCAB, [8192])
    alone, among = ours.encode([long]), ours.encode([*ids, long])
    assert (alone.dense[0] * among.dense[3]).sum() > 0.999
    assert len(alone.colbert[0]) == 8191
