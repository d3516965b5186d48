"""`m3fast train`: what it says, bad input, its plot, models of other shapes."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training import pairs, small_model, small_run, write_lines

from m3fast import Engine
from m3fast.cli import main
from m3fast.errors import ComputeError
from m3fast.runner.device import pick_dtype
from m3fast.train import loop, read_config, train
from m3fast.train.config import CONTRASTIVE
from m3fast.train.record import read_log

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("data", "values", "message"),
    [
        ({"path": "texts.jsonl"}, {}, "data[0]: losses: expected a teacher for texts, found none"),
        (
            {"path": "pairs.jsonl", "losses": ["teacher_kl"]},
            {"losses": {"teacher_kl": 1.0}},
            "data[0]: losses: expected one of dense, sparse, colbert, hybrid, distill_dense",
        ),
        (
            {"path": "pairs.jsonl", "losses": []},
            {},
            "data[0]: losses: expected one of dense, sparse",
        ),
        (
            {"path": "pairs.jsonl", "teacher": "pairs.npy"},
            {},
            "expected teacher_cosine or teacher_kl above 0 for its teacher, found both 0",
        ),
        (
            {"path": "pairs.jsonl", "teacher": "wide.npy"},
            {"losses": {"teacher_cosine": 1.0}},
            "data[0]: teacher: expected vectors of 24, as the model's, for teacher_cosine, ",
        ),
        ({"path": "pairs.jsonl"}, {"query_length": 513}, "query_length: expected 3 to 512 as of"),
        ({"path": "pairs.jsonl"}, {"passage_length": 2}, "passage_length: expected 3 to 512 as of"),
        ({"path": "pairs.jsonl"}, {"dtype": "float16"}, "dtype: expected 'auto', 'float32' or 'bf"),
        ({"path": "pairs.jsonl"}, {"dtype": "int3"}, "dtype: expected 'auto' or one of"),
        ({"path": "pairs.jsonl"}, {"device": "tpu"}, "device: "),
        ({"path": "pairs.jsonl"}, {"model": "no/where"}, "no/where"),
        ({"path": "pairs.jsonl"}, {"stepz": 3}, "stepz: expected one of"),
    ],
)
def test_bad_input(
    folder: Path,
    tmp_path: Path,
    fails: Callable[..., str],
    data: dict[str, Any],
    values: dict[str, Any],
    message: str,
) -> None:
    assert message in fails(small_run(folder, tmp_path / "out", data, **values))
    assert not (tmp_path / "out").exists()  # nothing was begun


def test_output_and_plot_are_checked(
    folder: Path,
    tmp_path: Path,
    fails: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = small_model(tmp_path / "model", hidden=24, heads=3, ffn=40)
    file = small_run(folder, tmp_path / "out", model=model, output=model)
    assert "output: expected a folder other than the model's, found" in fails(file)
    assert "--plot: expected .png" in fails(file, "--plot", "a.pdf")
    assert "--plot: expected an existing folder" in fails(file, "--plot", "no/where.png")
    assert "no.toml: expected a TOML file, found no file" in fails(tmp_path / "no.toml")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert "--plot: needs matplotlib: pip install" in fails(file, "--plot", "a.png")


def test_plot_and_progress(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plot = tmp_path / "run.png"
    file = small_run(folder, tmp_path / "out")
    assert main(["train", str(file), "--plot", str(plot), "--progress"]) == 0
    out, err = capsys.readouterr()
    assert f"plot: {plot}\n" in out and plot.read_bytes().startswith(b"\x89PNG")
    assert "9/9" in err and "tokens/s" in err
    assert not (tmp_path / "out" / "training.png").exists()

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert main(["train", str(small_run(folder, tmp_path / "bare")), "--no-progress"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and out.count("matplotlib") == 1
    assert "plot: needs matplotlib: pip install 'm3fast[demo]'\n" in out
    assert not (tmp_path / "bare" / "training.png").exists()


def test_gradients_that_are_not_finite(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(model: Any, *_: Any) -> Any:
        for tensor in model.tensors().values():
            tensor.grad = torch.full_like(tensor, torch.nan)
        return {"dense": 1.5}, 3

    monkeypatch.setattr(loop, "forward_backward", broken)
    with pytest.raises(
        ComputeError, match=r"step 1: expected finite gradients, found a norm of nan"
    ):
        train(read_config(small_run(folder, tmp_path / "out")), show_progress=False)
    assert not (tmp_path / "out" / "training.pt").exists()


def test_rates_and_decay(folder: Path, tmp_path: Path) -> None:
    """lr 1e-3 and one step: Adam moves a weight by lr, decay pulls only matrices."""
    values = dict(steps=1, warmup=0, weight_decay=50.0, embedding_lr=5e-3)
    out = train(read_config(small_run(folder, tmp_path / "out", **values)), show_progress=False)
    new = torch.load(out / "training.pt", weights_only=True)["model"]
    old = {k: t.detach() for k, t in loop.Model(folder / "model", CPU).tensors().items()}
    matrix, word = "layers.0.up.weight", "embeddings.word"
    pulled = new[matrix] - old[matrix] * (1 - 50.0 * 1e-3)
    assert pulled.abs().max() < 1.01e-3
    for name, rate in (("layers.0.up.bias", 1e-3), ("embeddings.norm.weight", 1e-3), (word, 5e-3)):
        moved = (new[name] - old[name]).abs()
        assert float(moved.max()) == pytest.approx(rate, rel=0.02), name


def test_clip(folder: Path, tmp_path: Path) -> None:
    """Adam takes no heed of scale until gradients are far below its epsilon, 1e-8."""
    old = loop.Model(folder / "model", CPU).tensors()["layers.0.up.bias"].detach()
    moved = {}
    for clip in (0.0, 1.0, 1e-12):
        file = small_run(folder, tmp_path / f"{clip}", steps=1, warmup=0, clip=clip, log_every=1)
        out = train(read_config(file), show_progress=False)
        new = torch.load(out / "training.pt", weights_only=True)["model"]["layers.0.up.bias"]
        moved[clip] = float((new - old).abs().max())
        assert read_log(out / "training.jsonl")[0]["norm"] > 0.01  # as it was before
    assert moved[0.0] == pytest.approx(moved[1.0], rel=0.01) == pytest.approx(1e-3, rel=0.02)
    assert moved[1e-12] < 1e-6


@pytest.mark.slow
def test_bge_m3s_width(tmp_path: Path, folder: Path) -> None:
    """A layer of XLM-R large, 1,024 wide, 16 heads, in the dtype that fine-tuning BGE-M3 takes."""
    small_model(tmp_path / "large", hidden=1024, heads=16, ffn=4096, layers=1)
    values = dict(model=tmp_path / "large", steps=2, checkpoint_every=2, log_every=1, lr=3e-4)
    values |= dict(warmup=0, dtype="auto", batch_pairs=4, sub_batch_tokens=300, negatives=1)
    rows: list[dict[str, Any]] = []
    for recompute in (False, True):
        lines: list[str] = []
        file = small_run(folder, tmp_path / f"out{recompute}", recompute_layers=recompute, **values)
        out = train(read_config(file), show_progress=False, report=lines.append)
        assert lines[0].endswith("cpu, " + str(pick_dtype("auto", CPU)).removeprefix("torch."))
        rows += read_log(out / "training.jsonl")
        assert rows[-1]["tokens"] > 2 * 300  # in parts
    assert all(np.isfinite(row["norm"]) and row["norm"] > 0 for row in rows)
    # The first step's: later ones come of weights that Adam moves by the signs of gradients.
    kept, recomputed = rows[0], rows[2]
    assert all(
        kept[name] == pytest.approx(recomputed[name], rel=1e-3) for name in (*CONTRASTIVE, "norm")
    )
    config = json.loads((out / "config.json").read_text())
    assert (config["hidden_size"], config["torch_dtype"]) == (1024, "float16")
    found = Engine.from_pretrained(out, device="cpu", dtype="float32").encode(["a dog", "a fox"])
    assert np.isfinite(found.dense).all() and found.dense.shape == (2, 1024)
    old = Engine.from_pretrained(tmp_path / "large", device="cpu", dtype="float32")
    assert not np.allclose(found.dense, old.encode(["a dog", "a fox"]).dense, atol=1e-3)


def test_flagembeddings_files_are_read(folder: Path, tmp_path: Path) -> None:
    rows = [
        row | {"pos_scores": [1.5], "neg_scores": [0.1, 0.2], "prompt": "find", "type": "normal"}
        for row in pairs("en")
    ]
    file = write_lines(tmp_path / "scored.jsonl", rows)
    plain = write_lines(tmp_path / "plain.jsonl", pairs("en"))
    values = dict(steps=2, negatives=2, checkpoint_every=2)
    outs = [
        train(read_config(small_run(folder, tmp_path / made.stem, {"path": made}, **values)))
        for made in (file, plain)
    ]
    a, b = (torch.load(out / "training.pt", weights_only=True)["model"] for out in outs)
    assert all(torch.equal(a[name], b[name]) for name in a)  # scores are not used
