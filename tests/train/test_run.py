"""`m3fast train` end to end: every loss falls, and a killed run ends as if never killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import make_checkpoint
from training import bag_of_words, pairs, texts_of, write_config, write_lines

import m3fast
from m3fast.train.config import LOSSES
from m3fast.train.record import read_log

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
STEPS = 240
# checkpoint_every is no multiple of log_every: a kill also cuts a mean of losses in two.
VALUES: dict[str, Any] = dict(
    model="model", steps=STEPS, batch_pairs=16, negatives=1, query_length=32, passage_length=64,
    lr=4e-3, warmup=10, temperature=0.05, random_positions=0.1, sub_batch_tokens=1500, seed=3,
    dtype="float32", device="cpu", checkpoint_every=40, log_every=6,
    losses={"sparse": 0.1, "distill_sparse": 0.1, "teacher_cosine": 1.0, "teacher_kl": 0.5},
)  # fmt: skip


def command(config: Path, **options: Any) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONSAFEPATH": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "m3fast", "train", str(config), "--no-progress"],
        env=env | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finish(config: Path) -> str:
    process = command(config)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")
    return out


def stop(config: Path, log: Path, rows: int, with_signal: signal.Signals) -> tuple[int, str, str]:
    """Run until the log has so many rows."""
    process = command(config)
    deadline = time.monotonic() + 200
    while len(read_log(log)) < rows and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(with_signal)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model; pairs in four languages and texts, both with a bag of words as teacher."""
    root = tmp_path_factory.mktemp("train")
    make_checkpoint(root / "model", hidden=48, heads=4, ffn=96, seed=5)
    rows = pairs("de", "en", "es", "tr")
    texts = [{"text": row["pos"][0]} for row in rows]
    for name, made in (("pairs", rows), ("texts", texts)):
        write_lines(root / f"{name}.jsonl", made)
        np.save(root / f"{name}.npy", bag_of_words(texts_of(made), 48))
    return root


def config(folder: Path, output: str) -> Path:
    data = [
        {"path": "pairs.jsonl", "teacher": "pairs.npy", "weight": 4},
        {"path": "texts.jsonl", "teacher": "texts.npy"},
    ]
    return write_config(folder / f"{output}.toml", data, **VALUES, output=output)


@pytest.fixture(scope="module")
def whole(folder: Path) -> tuple[Path, str]:
    return folder / "whole", finish(config(folder, "whole"))


def test_each_loss_falls(whole: tuple[Path, str]) -> None:
    rows = read_log(whole[0] / "training.jsonl")
    assert [row["step"] for row in rows] == list(range(6, STEPS + 1, 6))
    for name in LOSSES:
        values = [row[name] for row in rows if name in row]
        tenth = len(rows) // 10
        first, last = np.mean(values[:tenth]), np.mean(values[-tenth:])
        assert last < 0.9 * first, (name, first, last)


def test_log_and_output(whole: tuple[Path, str]) -> None:
    output, shown = whole
    rows = read_log(output / "training.jsonl")
    assert list(rows[0])[:6] == ["step", "seconds", "tokens", "tokens_per_s", "lr", "norm"]
    assert all(row["tokens_per_s"] > 0 and row["norm"] > 0 for row in rows)
    assert (np.diff([row["tokens"] for row in rows]) > 0).all()
    # Rising for 10 steps, then a cosine.
    rates = [row["lr"] for row in rows]
    assert rates[0] == pytest.approx(4e-3 * 6 / 10)
    along = [(row["step"] - 1 - 10) / (STEPS - 10) for row in rows[1:]]
    assert rates[1:] == pytest.approx([2e-3 * (1 + np.cos(np.pi * x)) for x in along])

    lines = shown.splitlines()
    weights = sum(p.numel() for p in torch_model(output).values())
    assert (
        lines[0] == f"{output.parent / 'model'}: 2 layers x 48, {weights:,} weights; cpu, float32"
    )
    assert lines[1] == "data[0] pairs.jsonl: 96 pairs, 384 texts, with a teacher"
    assert lines[2] == "data[1] texts.jsonl: 96 texts, with a teacher"
    assert lines[3] == f"{STEPS} steps to {output}"
    assert lines[4].startswith(f"{rows[-1]['tokens']:,} tokens in ") and "tokens/s" in lines[4]
    found = {n: f"{n} {rows[-1][n]:.4f}" for n in LOSSES if n in rows[-1]}
    assert lines[5] == "losses: " + ", ".join(found.values())
    assert lines[6] == f"plot: {output / 'training.png'}"
    assert lines[7:] == [f"model: {output}"]
    assert (output / "training.png").read_bytes().startswith(b"\x89PNG")
    engine = m3fast.Engine.from_pretrained(output, device="cpu")
    assert len(engine.encode(["a", "b"]).dense) == 2


def torch_model(output: Path) -> dict[str, torch.Tensor]:
    return torch.load(output / "training.pt", weights_only=True)["model"]


def without_times(file: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [{k: v for k, v in r.items() if k not in ("seconds", "tokens_per_s")} for r in rows]


def test_a_killed_run_ends_as_if_never_killed(folder: Path, whole: tuple[Path, str]) -> None:
    file, output = config(folder, "killed"), folder / "killed"
    log = output / "training.jsonl"
    code, _, _ = stop(file, log, 10, signal.SIGKILL)
    assert code == -signal.SIGKILL
    kept = torch.load(output / "training.pt", weights_only=True)["batches"]["step"]
    assert kept in range(40, STEPS, 40)  # else the run was over before the signal came
    # What a kill in the middle of writing leaves.
    (output / "training.new").write_bytes(b"PK half a file")
    with log.open("a") as stream:
        stream.write('{"step": 9')

    code, out, err = stop(file, log, 20, signal.SIGINT)
    assert (code, err) == (130, "m3fast: error: interrupted\n")
    assert f"going on from step {kept}, kept in {output / 'training.pt'}" in out
    later = torch.load(output / "training.pt", weights_only=True)["batches"]["step"]
    assert f"; the same command goes on from step {later}, kept in {output}" in out

    assert f"going on from step {later}, kept in" in finish(file)
    assert without_times(log) == without_times(whole[0] / "training.jsonl")
    for name in ("model.safetensors", "config.json"):
        assert (output / name).read_bytes() == (whole[0] / name).read_bytes()
    for name in ("colbert_linear.pt", "sparse_linear.pt"):
        one, two = (torch.load(o / name, weights_only=True) for o in (output, whole[0]))
        assert all(torch.equal(one[part], two[part]) for part in ("weight", "bias"))
    one, two = torch_model(output), torch_model(whole[0])
    assert all(torch.equal(one[name], two[name]) for name in two)
    seconds = [row["seconds"] for row in read_log(log)]
    assert seconds == sorted(seconds)

    # A run that is done ends at once, with the same model.
    before = (output / "model.safetensors").read_bytes()
    assert f"going on from step {STEPS}" in finish(file)
    assert (output / "model.safetensors").read_bytes() == before
    assert without_times(log) == without_times(whole[0] / "training.jsonl")
