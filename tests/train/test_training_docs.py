"""docs/training.md: its configs train, its lines are read, its tables are complete."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training import small_model, texts_of, write_config, write_lines

from m3fast.cli.arguments import parser
from m3fast.train import DataFile, TrainConfig, read_config, train
from m3fast.train.config import LOSSES, PAPER
from m3fast.train.data import Examples
from m3fast.train.record import read_log

TEXT = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)
TOML = [block for kind, block in BLOCKS if kind == "toml"]
PYTHON = [block for kind, block in BLOCKS if kind == "python"]
LINE = json.loads(next(block for kind, block in BLOCKS if kind == "json"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the configs name, and a small model."""
    small_model(tmp_path / "model", hidden=24, heads=3, ffn=40)
    rows = [LINE | {"query": f"{LINE['query']} {i}"} for i in range(6)]
    for name, made in (("pairs", rows), ("more-pairs", rows), ("texts", [{"text": "a fox"}] * 4)):
        write_lines(tmp_path / f"{name}.jsonl", made)
        np.save(tmp_path / f"{name}.npy", np.ones((len(texts_of(made)), 24), np.float32))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_block_is_of_a_kind_tested_here() -> None:
    assert {kind for kind, _ in BLOCKS} == {"sh", "json", "toml", "python"}
    assert (len(TOML), len(PYTHON)) == (2, 1)
    for kind, block in BLOCKS:
        for line in block.splitlines() if kind == "sh" else ():
            assert parser().parse_args(shlex.split(line)[1:]).command == "train"


def test_the_line_is_read(tmp_path: Path) -> None:
    found = Examples(DataFile(write_lines(tmp_path / "a.jsonl", [LINE])))
    assert found.rows == [[LINE["query"], *LINE["pos"], *LINE["neg"]]]


@pytest.mark.parametrize("block", TOML)
def test_configs_train(folder: Path, block: str) -> None:
    (folder / "run.toml").write_text(block)
    config = read_config(folder / "run.toml")
    assert config.model in ("BAAI/bge-m3", "m3fast-tiny")
    small = replace(config, model=str(folder / "model"), steps=2, log_every=1, device="cpu")
    assert train(small, show_progress=False) == folder / config.output


@pytest.mark.parametrize("block", PYTHON)
def test_python_runs(folder: Path, block: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = [{"path": f"{name}.jsonl", "teacher": f"{name}.npy"} for name in ("pairs", "texts")]
    values: dict[str, Any] = dict(model="model", output="out", steps=3, log_every=3, device="cpu")
    values["losses"] = {"teacher_cosine": 1.0, "teacher_kl": 1.0}
    write_config(folder / "run.toml", data, **values)
    names: dict[str, Any] = {}
    exec(block, names)
    assert names["engine"].encode("a fox").dense.shape == (1, 24)
    assert "3 steps to" in capsys.readouterr().out
    # Every field of the log has its row in the table, or is within a range of losses there.
    (row,) = read_log(folder / "out" / "training.jsonl")
    table = TEXT[TEXT.index("| field |") : TEXT.index("## From Python")]
    for field in row.keys() - set(LOSSES):
        assert f"`{field}`" in table, field
    assert f"`{LOSSES[0]}` … `{LOSSES[-1]}`" in table


def test_losses_and_weights_are_the_papers() -> None:
    table = TEXT[TEXT.index("| name |") : TEXT.index("A `[losses]` table")]
    found: dict[str, float] = {}
    for line in re.findall(r"^\|.*`.*\|$", table, re.MULTILINE):
        names, _, weight = (cell.strip() for cell in line.strip("|").split("|"))
        share, _, whole = weight.partition("/")
        found |= dict.fromkeys(re.findall(r"`(\w+)`", names), float(share) / float(whole or 1))
    assert found == pytest.approx(PAPER)


def test_names_in_the_text_exist() -> None:
    named = {name for name in re.findall(r"`(\w+)`", TEXT) if "_" in name}
    keys = {f.name for kind in (TrainConfig, DataFile) for f in fields(kind)}
    others = {"tokens_per_s", "pos_scores", "neg_scores"}
    assert named - keys - set(LOSSES) == others
