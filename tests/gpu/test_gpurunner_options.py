"""The engine on GPU kernels against the CPU's, for what a checkpoint may ask: modules, mcls."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import make_checkpoint
from gpurunners import SHAPE, TEXTS, cpu_engine, encode
from nearness import same

from m3fast import Engine
from m3fast.model import heads, mcls
from m3fast.runner import buckets, gpu


@pytest.mark.usefixtures("tall")
def test_modules_behind_the_pooling(tmp_path, device, monkeypatch) -> None:
    monkeypatch.setattr(buckets, "BUCKETS", (16, 48))
    made = make_checkpoint(tmp_path, **SHAPE)
    modules = ("Transformer", "Pooling", "Dense")
    listed = [{"type": f"sentence_transformers.{kind}", "path": f"{i}_{kind}" if i else ""}
              for i, kind in enumerate(modules)]  # fmt: skip
    (made / "modules.json").write_text(json.dumps(listed))
    (made / "2_Dense").mkdir()
    config = {"in_features": 64, "out_features": 10}
    (made / "2_Dense" / "config.json").write_text(json.dumps(config))
    state = {"linear.weight": torch.randn(10, 64), "linear.bias": torch.randn(10)}
    torch.save(state, made / "2_Dense" / "pytorch_model.bin")
    ours = Engine.from_pretrained(made, device=str(device), dtype="float32")
    plain = cpu_engine(made, monkeypatch)
    for texts in (TEXTS[:2], TEXTS[3:6]):
        expected = encode(plain, monkeypatch, texts)
        assert expected.dense.shape == (len(texts), 10)
        same(expected, encode(ours, monkeypatch, texts), 1e-5)


def both_mcls(path: Path, device, monkeypatch, **options) -> tuple[Engine, Engine]:
    ours = Engine.from_pretrained(
        path, device=str(device), dtype="float32", pooling="mcls", **options
    )
    return ours, cpu_engine(path, monkeypatch, pooling="mcls", **options)


@pytest.mark.usefixtures("tall")
def test_mcls(path, device, monkeypatch) -> None:
    """CLS and word rows whose number the host never tells: buckets, and beyond the last one."""
    monkeypatch.setattr(buckets, "BUCKETS", (16, 48, 64))
    for module in (mcls, heads, gpu):  # 256 would be slow to interpret
        monkeypatch.setattr(module, "CLS_EVERY", 8)
    ours, plain = both_mcls(path, device, monkeypatch, truncate_dim=24)
    ids = [[0, *range(5, 5 + n), 2] for n in (0, 5, 6, 7, 13, 14, 20)] + [[0], [0, 0, 0, 2]]
    for texts in (TEXTS, TEXTS[:1], TEXTS[1:5], ids, ids[:3], ids[6:]):
        expected = encode(plain, monkeypatch, texts)
        same(expected, encode(ours, monkeypatch, texts), 2e-5)
        for only in ("dense", "colbert"):
            chosen = {name: name == only for name in ("dense", "sparse", "colbert")}
            found = encode(ours, monkeypatch, texts, **chosen)
            a, b = (getattr(each, only) for each in (found, expected))
            a, b = (a, b) if only == "dense" else (a.values, b.values)
            np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.usefixtures("tall")
def test_mcls_at_its_own_stretch(path, device, monkeypatch) -> None:
    monkeypatch.setattr(buckets, "BUCKETS", (288,))
    ours, plain = both_mcls(path, device, monkeypatch)
    texts = [[0, *range(5, 270), 2], [5]]
    found, expected = (encode(e, monkeypatch, texts, max_length=512) for e in (ours, plain))
    assert found.n_tokens.tolist() == [268, 1] and len(found.colbert[0]) == 266
    same(expected, found, 2e-5)
