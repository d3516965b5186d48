"""Engines and drop-ins are closed, copied and pickled as other objects are."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import make_checkpoint

from m3fast import BGEM3FlagModel, Engine
from m3fast.errors import EngineClosedError


def load(path: Path, **options) -> Engine:
    return Engine.from_pretrained(path, **{"device": "cpu", "dtype": "float32", **options})


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"), seed=3)


def test_close(path) -> None:
    with load(path) as engine:
        assert engine.encode("x").dense.shape == (1, 40)
    for call in (
        lambda: engine.encode("x"),
        lambda: list(engine.encode_iter(["x"])),
        lambda: engine.warmup(),
        lambda: engine.hidden_states(torch.tensor([[0, 5, 2]])),
    ):
        with pytest.raises(EngineClosedError, match="closed"):
            call()
    engine.close()
    with BGEM3FlagModel(str(path), devices="cpu") as model:
        model.encode("x")
    for call in (lambda: model.encode("x"), lambda: model.compute_score([("a", "b")])):
        with pytest.raises(EngineClosedError, match="closed"):
            call()


OPTIONS = dict(max_length=9, token_budget=50, pooling="mean", normalize=False, truncate_dim=7)

OTHER_PROCESS = """
import pickle, sys
from pathlib import Path
engine = pickle.loads(Path(sys.argv[1]).read_bytes())
Path(sys.argv[2]).write_bytes(pickle.dumps(engine.encode(["a fine text", "word " * 30])))
"""


def test_copies_load_the_same_again(path, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(path.parent)
    engine = load(Path(path.name), **OPTIONS)
    assert engine.path.is_absolute()
    texts = ["a fine text", "word " * 30]
    wanted = engine.encode(texts)
    monkeypatch.chdir(tmp_path)
    Path(path.name).mkdir()  # another folder of that name
    for copied in (copy.deepcopy(engine), pickle.loads(pickle.dumps(engine)), copy.copy(engine)):
        found = copied.encode(texts)
        np.testing.assert_array_equal(found.dense, wanted.dense)
        assert found.dense.shape == (2, 7) and found.n_tokens.max() == 9
        assert copied.token_budget == 50
    Path("engine").write_bytes(pickle.dumps(engine))
    subprocess.run([sys.executable, "-c", OTHER_PROCESS, "engine", "out"], check=True, timeout=120)
    found = pickle.loads(Path("out").read_bytes())
    np.testing.assert_array_equal(found.dense, wanted.dense)
    assert copy.deepcopy(load("m3fast-tiny")).encode("x").dense.shape[0] == 1


def test_a_relative_path_is_read_once(path, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(path.parent)
    model = BGEM3FlagModel(path.name, devices="cpu")
    wanted = model.encode(["a"])["dense_vecs"]
    monkeypatch.chdir(tmp_path)
    assert len(model.tokenizer) and model.model.model.config.hidden_size == 40
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.encode(["a"])["dense_vecs"], wanted)
    np.testing.assert_array_equal(copy.deepcopy(model).encode(["a"])["dense_vecs"], wanted)
