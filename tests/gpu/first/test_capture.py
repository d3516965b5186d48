"""The engine with CUDA graphs beside one without, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoints import make_checkpoint
from gpu.first.inputs import random_ids
from nearness import same

from m3fast import Engine
from m3fast.runner.gpu import GpuRunner

pytestmark = pytest.mark.filterwarnings("error:.*the slower torch path", "error:no CUDA graph")


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    return make_checkpoint(folder, hidden=128, heads=2, ffn=256, layers=2, positions=2050)


@pytest.mark.gpu
class TestCapture:
    @pytest.mark.parametrize("pooling", ["cls", "mean", "mcls"])
    def test_graphs_equal_eager(self, small, rng, monkeypatch, device, pooling):
        replayed = []
        replay = torch.cuda.CUDAGraph.replay

        def counted(graph):
            replayed.append(graph)
            replay(graph)

        monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", counted)
        graphed, eager = (
            Engine.from_pretrained(small, device=str(device), pooling=pooling) for _ in range(2)
        )
        runner = eager.runner
        eager.runners = [GpuRunner(eager.config, runner.weights, eager.device, graphs=False)]
        # One bucket each, of 32 to 2,048 tokens.
        for lengths in ([5, 20], [2] * 30, [300], [700, 33, 40], [900, 800, 5, 300]):
            graphs, replays = len(graphed.runner.graphs), len(replayed)
            for _ in range(4):  # eagerly, captured, replayed twice, each with ids of its own
                ids = random_ids(rng, lengths)
                same(eager.encode(ids), graphed.encode(ids), 0.0)
            assert len(graphed.runner.graphs) == graphs + 1, lengths
            assert len(replayed) >= replays + 2, lengths
        assert len(eager.runner.graphs) == 0
