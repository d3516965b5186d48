"""A run's TOML file: defaults, types, bounds, one error that names the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from training import write_config

from m3fast.errors import InputError
from m3fast.train import DataFile, read_config
from m3fast.train.config import LOSSES, PAPER

BASE: dict[str, Any] = {"model": "m3fast-tiny", "output": "out", "steps": 5}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.jsonl").touch()
    return tmp_path


def test_defaults_and_paths(folder: Path) -> None:
    (folder / "model").mkdir()
    file = write_config(folder / "run.toml", [{"path": "a.jsonl"}], **BASE | {"model": "model"})
    config = read_config(file)
    assert config.model == str(folder / "model")
    assert config.output == folder / "out"
    assert config.data == (DataFile(folder / "a.jsonl"),)
    assert config.data[0].weight == 1.0
    assert (config.temperature, config.hybrid, config.losses) == (0.02, (1.0, 0.3, 1.0), {})
    assert (config.dtype, config.device, config.seed, config.negatives) == ("auto", "auto", 0, 0)
    file = write_config(folder / "run.toml", [{"path": "a.jsonl"}], **BASE)
    assert read_config(file).model == "m3fast-tiny"


def test_the_papers_weights() -> None:
    """The paper's (L + L')/2 with L of four terms, L' of three, and 0.1 for the sparse ones."""
    assert tuple(PAPER) == LOSSES

    def loss(**found: float) -> float:
        return sum(PAPER[name] * value for name, value in found.items())

    dense, sparse, colbert, hybrid = 1.3, 7.1, 0.4, 0.9
    ours = loss(dense=dense, sparse=sparse, colbert=colbert, hybrid=hybrid)
    assert ours == pytest.approx((dense + 0.1 * sparse + colbert + hybrid) / 4 / 2)
    ours = loss(distill_dense=dense, distill_sparse=sparse, distill_colbert=colbert)
    assert ours == pytest.approx((dense + 0.1 * sparse + colbert) / 3 / 2)
    assert PAPER["teacher_cosine"] == PAPER["teacher_kl"] == 0


def test_values_are_taken(folder: Path) -> None:
    data = [{"path": "a.jsonl", "weight": 2, "losses": ["dense"]}, {"path": folder / "a.jsonl"}]
    values = {"lr": 1, "hybrid": [1, 0, 2.5], "recompute_layers": True, "losses": {"dense": 3}}
    config = read_config(write_config(folder / "run.toml", data, **BASE | values))
    assert (config.lr, config.hybrid, config.recompute_layers) == (1.0, (1.0, 0.0, 2.5), True)
    assert config.losses == {"dense": 3.0}
    assert config.data[0].losses == ("dense",)
    assert [d.weight for d in config.data] == [2.0, 1.0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stepz": 1}, "stepz: expected one of ["),
        ({"steps": 0}, "steps: expected more than 0, found 0"),
        ({"steps": 1.5}, "steps: expected int, found 1.5"),
        ({"steps": True}, "steps: expected int, found True"),
        ({"lr": "fast"}, "lr: expected float, found 'fast'"),
        ({"lr": float("nan")}, "lr: expected a finite number, found nan"),
        ({"lr": float("inf")}, "lr: expected a finite number, found inf"),
        ({"lr": True}, "lr: expected float, found True"),
        ({"embedding_lr": 0.0}, "embedding_lr: expected more than 0"),
        ({"temperature": 0}, "temperature: expected more than 0"),
        ({"teacher_temperature": -1}, "teacher_temperature: expected more than 0"),
        ({"batch_pairs": -1}, "batch_pairs: expected more than 0"),
        ({"sub_batch_tokens": 0}, "sub_batch_tokens: expected more than 0"),
        ({"negatives": -1}, "negatives: expected 0 or more, found -1"),
        ({"warmup": -1}, "warmup: expected 0 or more"),
        ({"clip": -0.5}, "clip: expected 0 or more"),
        ({"seed": -1}, "seed: expected 0 or more"),
        ({"hybrid": [1, 2]}, "hybrid: expected three weights"),
        ({"hybrid": [0, 0, 0]}, "hybrid: expected three weights"),
        ({"hybrid": [1, -1, 1]}, "hybrid: expected three weights"),
        ({"hybrid": 1.0}, "hybrid: expected an array, found 1.0"),
        ({"hybrid": [1, "a", 1]}, "hybrid[1]: expected float, found 'a'"),
        ({"random_positions": 1.5}, "random_positions: expected a share from 0 to 1"),
        ({"recompute_layers": 1}, "recompute_layers: expected bool, found 1"),
        ({"losses": {"other": 1}}, "losses: expected some of ("),
        ({"losses": {"dense": -1}}, "losses.dense: expected 0 or more, found -1"),
        ({"losses": {"dense": float("nan")}}, "losses.dense: expected a finite number"),
        ({"losses": [1]}, "losses: expected a table, found [1]"),
        ({"model": 3}, "model: expected str, found 3"),
        ({"output": 3}, "output: expected a path, found 3"),
    ],
)
def test_bad_values(folder: Path, values: dict[str, Any], message: str) -> None:
    check(write_config(folder / "run.toml", [{"path": "a.jsonl"}], **BASE | values), message)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "data: expected at least one [[data]] table, found None"),
        ([{}], "data[0]: path: expected a value, found none"),
        ([{"path": "b.jsonl"}], "data[0]: path: expected a file, found none at "),
        ([{"path": "a.jsonl"}, {"path": "."}], "data[1]: path: expected a file"),
        ([{"path": "a.jsonl", "teacher": "b.npy"}], "data[0]: teacher: expected a file"),
        ([{"path": "a.jsonl", "weight": 0}], "data[0]: weight: expected more than 0"),
        ([{"path": "a.jsonl", "losses": ["x"]}], "data[0]: losses: expected some of ("),
        ([{"path": "a.jsonl", "losses": "dense"}], "data[0]: losses: expected an array"),
        ([{"path": "a.jsonl", "file": "x"}], "data[0]: file: expected one of ["),
    ],
)
def test_bad_data_tables(folder: Path, data: list[dict[str, Any]], message: str) -> None:
    check(write_config(folder / "run.toml", data, **BASE), message)


def test_bad_files(folder: Path) -> None:
    file = folder / "run.toml"
    check(file, "run.toml: expected a TOML file, found no file")
    file.write_text("steps = ")
    check(file, "run.toml: expected TOML, found ")
    file.write_bytes(b"model = '\xff'")
    check(file, "run.toml: expected TOML, found ")
    check(folder, "expected TOML, found ")
    file.write_text('steps = 1\noutput = "o"\n[[data]]\npath = "a.jsonl"\n')
    check(file, "run.toml: model: expected a value, found none")
    file.write_text("data = [1]")
    check(file, "data[0]: expected a table, found int")


def check(file: Path, message: str) -> None:
    with pytest.raises(InputError) as error:
        read_config(file)
    assert message in str(error.value)
    assert str(file) in str(error.value)
