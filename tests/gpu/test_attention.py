"""The attention kernel's values: each length class, block, scale and number that is not finite."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from gpu.attention_runs import FP32, agrees, exact, offsets, poisoned, run

from m3fast.kernels import dispatch
from m3fast.kernels.attention import AttentionPlan, attention_plan, varlen_attention
from m3fast.kernels.gpu import attention as kernel

LENGTHS = [1, 2, 31, 0, 33, 63, 64, 65, 1, 129]


def needs_tma(device, tma=True):
    if tma and device.type == "cuda" and dispatch.arch(device) < 90:
        pytest.skip("TMA needs compute capability 9.0")


@pytest.mark.parametrize("dim", [16, 32, 64, 128])
@pytest.mark.parametrize("longest", [32, 64, 128, 129])
def test_length_classes(device, dtype, rng, gap, longest, dim):
    lengths = [n for n in LENGTHS if n <= longest]
    cu = offsets(rng.permutation(lengths))
    qkv = torch.randn(cu[-1], 3, 1, dim, device=device, dtype=dtype)
    agrees(gap, run(qkv, cu), qkv, cu)


@pytest.mark.parametrize("tma", [False, True])
def test_many_blocks(device, dtype, rng, gap, tma):
    needs_tma(device, tma)
    cu = offsets([40, 20, 300, 3, 128, 64, 65])
    qkv = torch.randn(cu[-1], 3, 2, 32, device=device, dtype=dtype)
    qkv[:, 1] *= torch.linspace(0.5, 3, len(qkv), device=device).to(dtype)[:, None, None]
    config = kernel.AttentionConfig(32, 64, 32, 4, 2, tma)
    out = run(qkv, cu, config)
    agrees(gap, out, qkv, cu)


def test_tma_and_pointers_agree(device, rng):
    """Compiled for each GPU in the config that ships there; on the same blocks, the same bits."""
    needs_tma(device)
    cu = offsets([200, 129])
    qkv = torch.randn(cu[-1], 3, 2, 64, device=device, dtype=torch.float16)
    config = kernel.default_config(90, torch.float16, 64, "longer")
    assert config.tma
    by_tma, by_pointers = (run(qkv, cu, replace(config, tma=tma)) for tma in (True, False))
    assert torch.equal(by_tma, by_pointers)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 0.7])
def test_scale_and_large_scores(device, rng, gap, scale):
    cu = offsets([5, 30, 0, 150])
    qkv = torch.randn(cu[-1], 3, 1, 16, device=device) * 6
    want = exact(qkv, cu, scale)
    # Scores reach hundreds: their own rounding, 3e-5, decides; 5e-4 in the worst of 400 runs.
    assert gap(run(qkv, cu, scale=scale), want) < 3e-3


@pytest.mark.parametrize("rising", [True, False])
def test_scores_far_below_zero(device, rng, gap, rising):
    cu = offsets([6, 9, 170])
    qkv = torch.randn(cu[-1], 3, 1, 16, device=device)
    qkv[:, 0] += 5
    qkv[:, 1] -= 8 * torch.linspace(1, 2, len(qkv), device=device)[:, None, None]
    qkv = qkv.flip(0) if rising else qkv
    cu = offsets([170, 9, 6]) if rising else cu
    assert gap(run(qkv, cu), exact(qkv, cu)) < 1e-3


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's own, in the interpreter
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", [0, 1, 2])
def test_not_finite_stays_in_its_text(device, rng, part, bad):
    # Text 1 shares tiles with its neighbours, text 4 ends in a partial block, as does text 6.
    cu = offsets([7, 9, 11, 5, 100, 40, 70])
    given = torch.randn(cu[-1], 3, 2, 32, device=device)
    clean = run(given, cu)
    for text in (1, 4):
        qkv = given.clone()
        a, b = cu[text : text + 2]
        qkv[a + 3, part, 1, 5] = bad
        out = run(qkv, cu)
        touched = torch.zeros(len(out), dtype=torch.bool, device=device)
        touched[a:b] = True
        assert torch.equal(out[~touched], clean[~touched])
        assert torch.equal(out[:, :32], clean[:, :32])
        changed = out[touched][:, 32:]
        if part == 2:  # one dimension of V, in every row of the text, and no other
            assert not changed[:, 5].isfinite().any()
            changed = changed[:, torch.arange(32) != 5]
            assert changed.isfinite().all()
        elif math.isnan(bad):
            rows = changed.isnan().all(1)
            assert rows[3] and (part == 0 or rows.all())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_not_finite_everywhere(device, rng):
    """Also where it is the first, the last and the only text of a tile."""
    lengths = [3, 4, 25, 32, 1, 1]
    cu = offsets(lengths)
    qkv = torch.randn(cu[-1], 3, 1, 16, device=device)
    clean = run(qkv, cu)
    for a, b in pairwise(cu):
        dirty = qkv.clone()
        dirty[a:b] = float("nan")
        out = run(dirty, cu)
        assert out[a:b].isnan().all()
        out[a:b] = clean[a:b]
        assert torch.equal(out, clean)


def test_padded_bucket(device, dtype, rng, gap):
    """Junk tokens at the end, unused tiles, a class above the texts': as a CUDA graph sees it."""
    cu = offsets([20, 70, 8, 140])
    real, capacity = cu[-1], 300
    qkv = torch.full((capacity, 3, 2, 32), float("nan"), device=device, dtype=dtype)
    qkv[:real] = torch.randn(real, 3, 2, 32, device=device).to(dtype)
    plan = attention_plan(cu, 500, 32, dtype, device)
    tiles = torch.zeros(len(plan.tiles) + 5, 4, dtype=torch.int32, device=device)
    tiles[:, 0::2] = 2**30  # nothing else of an unused tile is read
    tiles[: len(plan.tiles)] = plan.tiles
    texts = torch.full((capacity,), 4, dtype=torch.int32, device=device)
    texts[:real] = plan.texts
    out = poisoned(qkv)
    # With a plan neither offsets nor the longest length are read.
    varlen_attention(qkv, None, -1, out=out, plan=AttentionPlan(tiles, texts, 500))
    assert out[real:].isnan().all()
    agrees(gap, out[:real], qkv[:real], cu)


def test_random_texts_without_a_plan(device, rng, gap):
    for top in (20, 60, 100):
        lengths = rng.integers(0, top, 12)
        cu = offsets(lengths)
        qkv = torch.randn(cu[-1], 3, 1, 16, device=device)
        out = varlen_attention(qkv, cu, lengths.max())
        assert gap(out, exact(qkv, cu)) < FP32


@pytest.mark.parametrize("texts", [0, 3])
def test_empty_batch(device, dtype, texts):
    qkv = torch.empty(0, 3, 2, 64, device=device, dtype=dtype)
    assert varlen_attention(qkv, np.zeros(texts + 1, np.int32), 0).shape == (0, 128)


def test_no_tiles(device):
    qkv = torch.zeros(2, 3, 1, 16, device=device)
    none = torch.zeros(0, 4, dtype=torch.int32, device=device)
    plan = AttentionPlan(none, torch.zeros(2, dtype=torch.int32, device=device), 0)
    assert varlen_attention(qkv, None, 0, plan=plan).shape == (2, 16)
    config = kernel.AttentionConfig(32, 64, 64, 4, 2, tma=True)
    kernel.launch_attention(qkv[:0], none, plan.texts, 1.0, poisoned(qkv), config)
