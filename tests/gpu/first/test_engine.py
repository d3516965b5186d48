"""The whole engine at BGE-M3's width beside the CPU's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import make_checkpoint
from gpu.first.inputs import random_ids
from nearness import as_rough, off

from m3fast import Engine
from m3fast.runner.gpu import GpuRunner

pytestmark = pytest.mark.filterwarnings("error:.*the slower torch path", "error:no CUDA graph")


@pytest.fixture(scope="module")
def big(tmp_path_factory) -> Callable[[int], Path]:
    """A checkpoint of BGE-M3's width with so many layers, made once."""

    @functools.cache
    def made(layers: int) -> Path:
        folder = tmp_path_factory.mktemp("big")
        return make_checkpoint(
            folder, hidden=1024, heads=16, ffn=4096, positions=8194, layers=layers, deep=layers > 2
        )

    return made


@pytest.mark.gpu
class TestEngine:
    """bf16 on the GPU is as near to fp32 as bf16 on the CPU."""

    @pytest.mark.parametrize("layers", [2, 24])
    def test_equals_the_cpu(self, big, rng, device, layers):
        """At 2 layers more tokens than the largest graph, at 24 few: a CPU has to keep up."""
        few = [2, 3, 17, 33, 64, 130]
        batches = [few] if layers > 2 else [few, [*rng.integers(2, 600, 25), 1500, 2100]]
        batches = [random_ids(rng, lengths) for lengths in batches]
        found = []
        for on, dtype in (("cpu", "float32"), ("cpu", "bfloat16"), (str(device), "bfloat16")):
            with Engine.from_pretrained(big(layers), device=on, dtype=dtype) as engine:
                found.append([engine.encode(ids) for ids in batches])
                if on != "cpu":
                    assert isinstance(engine.runner, GpuRunner)
                    # Again, as graphs are captured and replayed; other launches, the same rows.
                    found += [[engine.encode(ids) for ids in batches] for _ in range(2)]
        exact, rough, *ours = found
        for each in ours:
            for three in zip(each, rough, exact, strict=True):
                as_rough(*three)

    def test_hidden_states(self, big, rng, device):
        """Padded in, padded out: on the GPU the CUDA C++ kernels are on the way."""
        ids = torch.from_numpy(rng.integers(4, 20_000, (5, 150)))
        mask = torch.arange(150) < torch.tensor([150, 3, 1, 64, 149])[:, None]
        ids[~mask] = 1
        states = []
        for on, dtype in (("cpu", "float32"), ("cpu", "bfloat16"), (str(device), "bfloat16")):
            with Engine.from_pretrained(big(2), device=on, dtype=dtype) as engine:
                states.append(engine.hidden_states(ids.to(on), mask.to(on)).float().cpu())
        exact, rough, ours = states
        assert (ours[~mask] == 0).all()
        for i, row in enumerate(mask):
            o, r, e = (x[i][row].numpy() for x in (ours, rough, exact))
            assert off(o, e) <= 2 * off(r, e), f"row {i}"
