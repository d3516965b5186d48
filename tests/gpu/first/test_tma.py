"""Loads by TMA beside loads by pointers, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from gpu.first.inputs import DIM, HALF, HEADS, NAN, TOY, WIDTH, ends_of, owners_of, randn, unit

from m3fast.kernels import dispatch
from m3fast.kernels.attention import attention_tiles
from m3fast.kernels.gpu import attention as attention_kernels
from m3fast.kernels.gpu import maxsim as maxsim_kernels
from m3fast.kernels.gpu import maxsim_config
from m3fast.kernels.gpu.attention import AttentionConfig
from m3fast.kernels.gpu.maxsim_config import MaxsimConfig
from m3fast.kernels.maxsim import maxsim, quantize_vectors

pytestmark = pytest.mark.filterwarnings("error:.*the slower torch path", "error:no CUDA graph")


def same_bits(found, expected):
    assert found.isfinite().all(), f"{int((~found.isfinite()).sum())} values are not finite"
    apart = (found.double() - expected.double()).abs()
    assert torch.equal(found, expected), (
        f"{int((apart > 0).sum())} of {apart.numel()} values differ, by up to {apart.max():.3g}"
    )


class TestTma:
    """Launch after launch with tensors of its own, and so with descriptors of its own."""

    @pytest.fixture(autouse=True)
    def _has_tma(self, device):
        if not TOY and dispatch.arch(device) // 10 != 9:
            pytest.skip("the configs with TMA are those of compute capability 9.0")

    def plan(self, ends, config, device):
        tiles = torch.from_numpy(attention_tiles(ends, config.short, config.rows)).to(device)
        return tiles, owners_of(np.diff(ends), device)

    def attention(self, qkv, plan, config):
        out = qkv.new_full((len(qkv), qkv.shape[2] * qkv.shape[3]), NAN)
        attention_kernels.launch_attention(qkv, *plan, qkv.shape[3] ** -0.5, out, config)
        return out

    def maxsim(self, given, config):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(maxsim_kernels, "config_for", lambda *_: config)
            return maxsim(*given[:4], doc_scales=given[4])

    @pytest.mark.parametrize("dim", [16] if TOY else [32, 64, 128])
    def test_attention(self, device, rng, dim):
        config = AttentionConfig(16, 32, 16, 4, 2, tma=True)
        if not TOY:
            config = attention_kernels.default_config(90, HALF, dim, "longer")
        assert config.tma
        results = []
        for turn in range(1 if TOY else 12):  # nothing waits for the device in between
            lengths = [70, 17, 40] if TOY else [*rng.integers(1, 900, 5 + turn), 65]
            ends = ends_of(lengths)
            qkv, plan = randn(device, ends[-1], 3, HEADS, dim), self.plan(ends, config, device)
            configs = (config, replace(config, tma=False))
            results.append([self.attention(qkv, plan, each) for each in configs])
        for found, expected in results:
            same_bits(found, expected)

    @pytest.mark.parametrize("tokens", [20] if TOY else [32, 64, 200])
    @pytest.mark.parametrize("kind", [HALF, torch.int8, torch.float8_e4m3fn], ids=str)
    def test_maxsim(self, device, rng, kind, tokens):
        config = MaxsimConfig(32, 16, 16, 4, 2, tma=True)
        if not TOY:
            config = maxsim_config.default_config(90, tokens, kind, tma=True)
        results = []
        for _ in range(1 if TOY else 6):
            given = self.vectors(device, rng, kind, tokens, [5, 0, 40] if TOY else None)
            configs = (config, replace(config, tma=False))
            results.append([self.maxsim(given, each) for each in configs])
        for found, expected in results:
            same_bits(found, expected)

    def vectors(self, device, rng, kind, tokens, rows=None):
        rows = [*rng.integers(0, 700, 9), 1] if rows is None else rows
        q_ends, d_ends = (
            torch.from_numpy(ends_of(x, np.int64)).to(device) for x in ([tokens - 1, 1], rows)
        )
        docs, scales = unit(device, sum(rows), WIDTH), None
        if kind != HALF:
            docs, scales = quantize_vectors(docs, kind)
        return unit(device, tokens, WIDTH), q_ends, docs, d_ends, scales

    @pytest.mark.gpu
    def test_in_a_graph(self, device, rng):
        """Descriptors that a graph holds, and launches beside it after each replay."""
        config = attention_kernels.default_config(90, HALF, DIM, "longer")
        rows = maxsim_config.default_config(90, 32, HALF, tma=True)
        pointers = replace(config, tma=False), replace(rows, tma=False)
        assert config.tma and rows.tma
        plan, other = (
            self.plan(ends_of(lengths), config, device) for lengths in ([200, 129, 700], [300, 66])
        )
        qkv = randn(device, 1029, 3, HEADS, DIM)
        given = self.vectors(device, rng, HALF, 32)

        def work(attention, late):
            return self.attention(qkv, plan, attention), self.maxsim(given, late)

        work(config, rows)
        torch.cuda.synchronize(device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = work(config, rows)
        for _ in range(5):
            qkv.copy_(randn(device, *qkv.shape))
            given[2].copy_(unit(device, *given[2].shape))
            graph.replay()
            fresh = randn(device, 366, 3, HEADS, DIM)
            after = [self.attention(fresh, other, each) for each in (config, pointers[0])]
            for a, b in zip(found, work(*pointers), strict=True):
                same_bits(a, b)
            same_bits(*after)
