"""Training on a GPU against training on the CPU, and going on there after an interrupt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training import pairs, small_model, small_run, write_lines

from m3fast.train import loop, read_config, train
from m3fast.train.config import LOSSES
from m3fast.train.record import read_log

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("train")
    small_model(root / "model", hidden=64, heads=4, ffn=96)
    write_lines(root / "pairs.jsonl", pairs("en", "de"))
    return root


def log(folder: Path, out: Path, **values: Any) -> list[dict[str, Any]]:
    config = read_config(small_run(folder, out, log_every=1, negatives=1, **values))
    return read_log(train(config, show_progress=False) / "training.jsonl")


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("tokens", [200, 10**6])
@pytest.mark.parametrize(("dtype", "near"), [("float32", 0.01), ("bfloat16", 0.1)])
def test_equals_the_cpu(
    folder: Path, tmp_path: Path, recompute: bool, tokens: int, dtype: str, near: float
) -> None:
    values = dict(recompute_layers=recompute, sub_batch_tokens=tokens, lr=1e-4)
    ours = log(folder, tmp_path / "gpu", device="cuda", dtype=dtype, **values)
    theirs = log(folder, tmp_path / "cpu", **values)
    names = [name for name in LOSSES if name in theirs[0]]
    assert len(ours) == len(theirs) == 9 and len(names) == 7
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose([a[n] for n in names], [b[n] for n in names], rtol=near)


def test_goes_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = log(folder, tmp_path / "whole", device="cuda")
    forward, calls = loop.forward_backward, []

    def interrupted(*args: Any) -> Any:
        calls.append(1)
        if len(calls) > 6:
            raise KeyboardInterrupt
        return forward(*args)

    monkeypatch.setattr(loop, "forward_backward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        log(folder, tmp_path / "cut", device="cuda")
    monkeypatch.undo()
    again = log(folder, tmp_path / "cut", device="cuda")
    assert [row["step"] for row in again] == list(range(1, 10))
    # Sums by atomics come in any order on a GPU: near, not the same bits.
    assert again[-1]["hybrid"] == pytest.approx(whole[-1]["hybrid"], rel=0.01)
