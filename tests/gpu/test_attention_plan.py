"""Which config and which path a batch takes, and the arguments that are refused."""

import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from gpu.attention_runs import FP32, exact, offsets, run

from m3fast.kernels import attention, dispatch, tuning
from m3fast.kernels.attention import (
    attention_class,
    attention_config,
    attention_plan,
    attention_tiles,
    varlen_attention,
)
from m3fast.kernels.gpu import attention as kernel


def test_tuned_config_is_used(device, monkeypatch, gap, rng):
    row = {
        "op": "attention",
        "key": {"dtype": "torch.float32", "dim": "16", "longest": "longer"},
        "config": {"short": 16, "rows": 64, "keys": 16},
    }
    monkeypatch.setattr(tuning, "_table", lambda device: [row])
    attention._config.cache_clear()
    try:
        assert attention_config(16, torch.float32, 200, device).rows == 64
        assert attention_config(16, torch.float32, 100, device).rows == 32  # the fp32 default
        cu = offsets([12, 140, 9])
        qkv = torch.randn(cu[-1], 3, 1, 16, device=device)
        assert gap(run(qkv, cu), exact(qkv, cu)) < FP32
    finally:
        attention._config.cache_clear()


def test_classes():
    assert [attention_class(n) for n in (0, 1, 32, 33, 64, 65, 128, 129, 8192)] == [
        "32", "32", "32", "64", "64", "128", "128", "longer", "longer",
    ]  # fmt: skip


def test_every_config_takes_every_length_of_its_class():
    for arch in (80, 90):
        for dtype in kernel.DTYPES:
            for dim in kernel.DIMS:
                for longest in ("32", "64", "128", "longer"):
                    for config in kernel.candidates(arch, dtype, dim, longest):
                        top = 8192 if longest == "longer" else int(longest)
                        assert config.short >= top or (config.rows and config.keys)
                        assert config.tma <= (arch >= 90)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("qkv", "scale", "said"),
    [
        (torch.randn(9, 3, 1, 33), None, "expected head size 16, 32, 64 or 128, found 33"),
        (torch.randn(9, 3, 1, 16).double(), None, "float64"),
        (torch.zeros(9, 6, 1, 16)[:, ::2], None, "strided"),
        (torch.randn(9, 3, 1, 16), -1.0, "expected a finite scale >= 0, found -1.0"),
    ],
)
def test_fallback_is_said(device, monkeypatch, gap, qkv, scale, said):
    monkeypatch.setattr(dispatch, "_said", set())
    cu = offsets([4, 5])
    # A copy to a device would be contiguous.
    qkv = qkv.to(device) if qkv.is_contiguous() else torch.zeros(9, 6, 1, 16, device=device)[:, ::2]
    with pytest.warns(RuntimeWarning, match="varlen_attention: the slower torch path") as caught:
        out = varlen_attention(qkv, cu, 5, scale)
    assert said in str(caught[0].message)
    assert gap(out, exact(qkv, cu, scale)) < 1e-4  # torch's own, on a GPU in kernels of its choice
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        varlen_attention(qkv, cu, 5, scale)


def test_bad_arguments(device):
    qkv = torch.zeros(5, 3, 1, 16, device=device)
    plan = attention_plan(offsets([2, 3]), 3, 16, qkv.dtype, device)
    with pytest.raises(ValueError, match="max_seqlen: expected 3 from cu_seqlens, found 2"):
        varlen_attention(qkv, offsets([2, 3]), 2)
    with pytest.raises(ValueError, match="cu_seqlens: expected a last entry of 5"):
        varlen_attention(qkv, offsets([2, 2]), 2)
    with pytest.raises(ValueError, match=r"plan\.texts: expected shape \[5\], found \[4\]"):
        varlen_attention(qkv, None, 3, plan=replace(plan, texts=plan.texts[:4]))
    with pytest.raises(TypeError, match=r"plan\.tiles: expected dtype torch\.int32"):
        varlen_attention(qkv, None, 3, plan=replace(plan, tiles=plan.tiles.long()))
    with pytest.raises(ValueError, match=r"plan\.tiles: expected shape \[1, 4\]"):
        varlen_attention(qkv, None, 3, plan=replace(plan, tiles=plan.tiles[:, :3]))
    with pytest.raises(ValueError, match=r"plan\.tiles: expected a contiguous tensor"):
        wide = torch.zeros(1, 8, dtype=torch.int32, device=device)
        varlen_attention(qkv, None, 3, plan=replace(plan, tiles=wide[:, ::2]))
    with pytest.raises(ValueError, match="short: expected at least 1"):
        attention_tiles(offsets([2]), 0, 0)
    with pytest.raises(ValueError, match="rows: expected at least 1 for 3 tokens, found 0"):
        attention_tiles(offsets([2, 3]), 2, 0)


def test_plan_of_bad_offsets(device):
    make = partial(attention_plan, dim=64, dtype=torch.float16, device=device)
    with pytest.raises(TypeError, match="cu_seqlens"):
        make(np.array([0, 4]), 4)
    for bad in ([1, 4], [0, 5, 4], []):
        with pytest.raises(ValueError, match="cu_seqlens"):
            make(np.array(bad, np.int32), 8)
    with pytest.raises(ValueError, match="longest: expected at least 5"):
        make(np.array([0, 5], np.int32), 4)
    assert make(np.array([0, 5], np.int32), 8).tiles.tolist() == [[0, 5, 0, 5]]
