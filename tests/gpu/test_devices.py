"""A device that is full, two of them, and one without Triton."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import make_checkpoint
from nearness import near

from m3fast import Engine
from m3fast.kernels import dispatch
from m3fast.runner.cpu import Runner

pytestmark = pytest.mark.gpu
SHAPE = dict(hidden=128, heads=2, ffn=512, layers=2, seed=5)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"), **SHAPE)


def texts(rng: np.random.Generator, vocab: int, count: int) -> list[list[int]]:
    lengths = rng.integers(2, 300, count)
    return [[0, *rng.integers(4, vocab, n - 2).tolist(), 2] for n in lengths]


@pytest.fixture(scope="module")
def plain(path: Path) -> Engine:
    return Engine.from_pretrained(path, device="cpu", dtype="float32")


def test_a_full_device_halves_the_batch(path, plain, rng) -> None:
    """90,000 tokens at once would take half a gigabyte, and there is less than half of that."""
    ours = Engine.from_pretrained(path, device="cuda", dtype="float32", token_budget=10**6)
    ids = texts(rng, ours.config.vocab_size, 600)
    ours.encode(ids[:50])  # what stays allocated
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 0.2e9) / total)
    try:
        with pytest.warns(RuntimeWarning, match="out of memory for .* the batch is split"):
            found = ours.encode(ids)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    near(plain.encode(ids), found, 2e-4)
    near(plain.encode(ids[:3]), ours.encode(ids[:3]), 2e-4)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_devices(path, plain, rng) -> None:
    both = Engine.from_pretrained(path, device=["cuda:0", "cuda:1"], dtype="float32")
    ids = texts(rng, both.config.vocab_size, 2000)
    near(plain.encode(ids), both.encode(ids), 2e-4)


def test_without_triton(path, plain, rng, monkeypatch) -> None:
    """Plain torch operations, which is said once."""
    monkeypatch.setattr(dispatch, "_why_not_cuda", lambda device: "triton is not installed")
    monkeypatch.setattr(dispatch, "_said", set())
    with pytest.warns(RuntimeWarning, match="the slower torch path .* triton is not installed"):
        ours = Engine.from_pretrained(path, device="cuda", dtype="float32")
        assert type(ours.runner) is Runner
        ids = texts(rng, ours.config.vocab_size, 60)
        found = ours.encode(ids)
    near(plain.encode(ids), found, 2e-4)
