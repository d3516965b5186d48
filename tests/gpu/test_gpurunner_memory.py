"""The runner of a GPU: memory that runs out or grows, captures that fail, what must not wait."""

from __future__ import annotations

import gc
import warnings

import numpy as np
import pytest
import torch
from checkpoints import TINY_VOCAB, make_checkpoint
from gpurunners import ALL, TEXTS, encode, ids_of, random_ids
from nearness import same

from m3fast import Engine
from m3fast.runner.base import Outputs
from m3fast.runner.gpu import GpuRunner
from m3fast.types import Selection


@pytest.mark.usefixtures("tall")
def test_out_of_memory_frees_and_splits(pair, monkeypatch) -> None:
    """The runner's own allocations fail above a size."""
    ours, plain = pair
    run = GpuRunner._run_exact

    def limited(self, parts, size, *rest):
        if size.texts > 4:
            raise torch.OutOfMemoryError("as on a full device")
        return run(self, parts, size, *rest)

    monkeypatch.setattr(GpuRunner, "_run_exact", limited)
    with pytest.warns(RuntimeWarning, match="out of memory for 7 texts"):
        found = encode(ours, monkeypatch)
    same(encode(plain, monkeypatch), found, 1e-5)


def test_a_first_batch_that_fails_is_started_over(pair, monkeypatch) -> None:
    """Its buffers must not be kept half made: graphs would hold addresses that change."""
    ours, plain = pair
    compute = GpuRunner._compute
    sizes = []

    def fails_once(self, inputs, *rest):
        sizes.append(len(inputs[0]))
        if len(sizes) == 1:
            raise torch.OutOfMemoryError("as on a full device")
        compute(self, inputs, *rest)

    monkeypatch.setattr(GpuRunner, "_compute", fails_once)
    with pytest.raises(torch.OutOfMemoryError):
        ours.encode(TEXTS[0])
    found = ours.encode(TEXTS[0])
    same(encode(plain, monkeypatch, TEXTS[:1]), found, 1e-5)
    assert sizes == [64, 64, 16]


@pytest.mark.gpu
@pytest.mark.parametrize("pooling", ["cls", "mean", "last_token", "mcls"])
def test_submit_does_not_wait(big, rng, pooling) -> None:
    """torch refuses to wait for the device, in a bucket, in a large one and beyond the last."""
    ours = Engine.from_pretrained(big, device="cuda", pooling=pooling)
    options = ours.call().options
    alone = [Outputs(*(i == j for j in range(3))) for i in range(3)]
    for lengths in ([20], [300] * 20, [500] * 20):
        tokens = ours.tokenize(ids_of(rng, TINY_VOCAB, lengths), 8192)
        for outputs in (ALL, *alone):
            given = ([Selection(tokens, np.arange(len(tokens)))], outputs, options)
            before = [ours.runner.submit(*given)() for _ in range(2)][-1]  # captured
            torch.cuda.set_sync_debug_mode("error")
            try:
                waits = [ours.runner.submit(*given) for _ in range(3)]
            finally:
                torch.cuda.set_sync_debug_mode("default")
            for result in (wait() for wait in waits):
                for name in ("dense", "colbert"):
                    a, b = getattr(before, name), getattr(result, name)
                    assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.gpu
def test_a_failed_capture_leaves_nothing_behind(path, rng, monkeypatch) -> None:
    """Neither of torch's allocators nor its random numbers go on as if it lasted."""

    def pools() -> set[tuple[int, int]]:
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return {tuple(part["segment_pool_id"]) for part in torch.cuda.memory_snapshot()}

    compute = GpuRunner._compute

    def waits(self, *given) -> None:
        compute(self, *given)
        if torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize()

    ours, other = (Engine.from_pretrained(path, device="cuda") for _ in range(2))
    ids = random_ids(rng, TINY_VOCAB, 4, 30)
    expected = ours.encode(ids)
    before = pools()
    with monkeypatch.context() as patch:
        patch.setattr(GpuRunner, "_compute", waits)
        with pytest.warns(RuntimeWarning, match="no CUDA graph for"):
            same(expected, ours.encode(ids))
    assert pools() <= before | {(0, 0)}
    # A block that another stream has used is free once that stream is done.
    torch.cuda.synchronize()
    side, held = torch.cuda.Stream(), torch.cuda.memory_allocated()
    x = torch.empty(1 << 22, device="cuda")
    x.record_stream(side)
    del x
    torch.cuda.synchronize()
    torch.empty(1, device="cuda")
    assert torch.cuda.memory_allocated() == held
    torch.randn(4, device="cuda")
    pinned = torch.ones(1 << 20, pin_memory=True)
    assert pinned.to("cuda", non_blocking=True).sum() == 1 << 20
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            same(expected, ours.encode(ids))
            same(expected, other.encode(ids))
    assert (len(ours.runner.graphs), len(other.runner.graphs)) == (0, 1)


@pytest.mark.gpu
def test_no_memory_growth(path, rng) -> None:
    ours = Engine.from_pretrained(path, device="cuda")
    ours.warmup()
    ids = random_ids(rng, TINY_VOCAB, 200, 60)
    for text in ids:
        ours.encode([text])
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    for i in range(10_000):
        ours.encode([ids[i % 200]])
    torch.cuda.synchronize()
    assert (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) == before


@pytest.mark.gpu
def test_no_compilation_after_warmup(big, rng, monkeypatch) -> None:
    import triton

    ours = Engine.from_pretrained(big, device="cuda")
    ours.warmup()
    compiled = []

    def count(*args, **kwargs):
        compiled.append(kwargs.get("repr", args))

    monkeypatch.setattr(triton.knobs.runtime, "jit_cache_hook", count)
    for _ in range(300):
        longest = int(rng.choice([8, 20, 60, 128, 500]))
        ours.encode(random_ids(rng, TINY_VOCAB, int(rng.integers(1, 60)), longest))
    assert not compiled


@pytest.mark.gpu
def test_peak_memory_of_32k_tokens(tmp_path) -> None:
    """Weights and 0.8 GB, what buckets hold among it, at BGE-M3's width; layers share buffers."""
    folder = make_checkpoint(
        tmp_path, hidden=1024, heads=16, ffn=4096, layers=4, positions=8194, colbert_dim=1024
    )
    ours = Engine.from_pretrained(folder, device="cuda", dtype="bfloat16")
    weights = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for texts in (1, 16, 64):
        ours.encode([[0, *[9] * 510, 2]] * texts)
    assert torch.cuda.max_memory_allocated() - weights <= 0.8e9
