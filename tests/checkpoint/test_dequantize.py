"""The way back from int8: folders that other libraries read, with the weights that int8 rounded."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from checkpoints import TEXTS, edit_weights, make_checkpoint
from safetensors.torch import load_file
from sentencefolders import saved, theirs

from m3fast import CheckpointError, Engine, InputError
from m3fast.checkpoint import quantize as module
from m3fast.checkpoint.quantize import dequantize, quantize
from m3fast.cli import main
from m3fast.train.model import Model

CPU = torch.device("cpu")
QUERY = "encoder.layer.1.attention.self.query.weight"


def load(path: Path, dtype: str = "float32") -> Engine:
    return Engine.from_pretrained(path, device="cpu", dtype=dtype)


def assert_same(path: Path, other: Path, dtype: str = "float32") -> None:
    found, wanted = (load(each, dtype).encode(TEXTS).to_arrays() for each in (path, other))
    assert found.keys() == wanted.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, wanted[name], err_msg=name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("back") / "floats", seed=3, pooling="cls")


@pytest.fixture(scope="module")
def int8(whole) -> Path:
    return quantize(whole, whole.with_name("int8")).folder


@pytest.fixture(scope="module")
def back(int8) -> Path:
    return dequantize(int8, int8.with_name("back"), torch.float32).folder


def test_gives_the_same_bits(whole, int8, back) -> None:
    assert_same(back, int8)
    assert load(back, "auto").dtype != torch.int8
    # What is rounded once is rounded: the second int8 is the first.
    again = quantize(back, back.with_name("again")).folder
    assert_same(again, int8, "int8")
    assert not np.array_equal(load(back).encode("a").dense, load(whole).encode("a").dense)


def test_what_is_written(whole, int8, back, tmp_path) -> None:
    before, after = load_file(whole / "model.safetensors"), load_file(back / "model.safetensors")
    assert {n: (t.dtype, t.shape) for n, t in after.items()} == {
        n: (torch.float32, t.shape) for n, t in before.items()
    }
    made = dequantize(int8, tmp_path / "halves", torch.float16)
    halves = load_file(made.folder / "model.safetensors")
    for name, tensor in after.items():
        assert torch.equal(halves[name], tensor.half()), name
    assert made.before == (int8 / "model.safetensors").stat().st_size
    assert made.after == (made.folder / "model.safetensors").stat().st_size
    config = json.loads((whole / "config.json").read_text())
    for folder, dtype in ((back, "float32"), (made.folder, "float16")):
        found = json.loads((folder / "config.json").read_text())
        assert found == config | {"torch_dtype": dtype}
    files = {file.relative_to(whole) for file in whole.rglob("*") if file.is_file()}
    assert files == {file.relative_to(back) for file in back.rglob("*") if file.is_file()}
    for name in files - {Path("config.json"), Path("model.safetensors")}:
        assert (back / name).read_bytes() == (whole / name).read_bytes()


def test_a_layer_that_stayed_in_floats(whole, tmp_path) -> None:
    path = make_checkpoint(tmp_path / "a", hidden=64, heads=4)
    edit_weights(path, lambda s: s[QUERY][:, 7].mul_(25))
    int8 = quantize(path, tmp_path / "b").folder
    assert load_file(int8 / "model.safetensors")[QUERY].dtype == torch.float32
    assert_same(dequantize(int8, tmp_path / "c", torch.float32).folder, int8)


def test_flagembedding_reads_it(int8, back) -> None:
    from FlagEmbedding import BGEM3FlagModel

    peer = BGEM3FlagModel(str(back), use_fp16=False, devices="cpu").encode(
        TEXTS, return_dense=True, return_sparse=True, return_colbert_vecs=True
    )
    ours = load(int8).encode(TEXTS)
    np.testing.assert_allclose(peer["dense_vecs"], ours.dense, atol=1e-5)
    for i, row in enumerate(ours.sparse.to_dicts()):
        found = {int(k): float(v) for k, v in peer["lexical_weights"][i].items()}
        for token in found.keys() | row.keys():
            assert found.get(token, 0) == pytest.approx(row.get(token, 0), abs=1e-5)
        np.testing.assert_allclose(peer["colbert_vecs"][i], ours.colbert[i], atol=1e-5)


def test_transformers_and_sentence_transformers_read_it(tmp_path) -> None:
    from transformers import AutoModel

    path = saved(tmp_path)
    back = dequantize(quantize(path, tmp_path / "b").folder, tmp_path / "c", torch.float16).folder
    assert AutoModel.from_pretrained(back, dtype="auto").dtype == torch.float16
    back = dequantize(tmp_path / "b", tmp_path / "d", torch.float32).folder
    np.testing.assert_allclose(
        theirs(back, TEXTS), load(back).encode(TEXTS, normalize=False).dense, atol=1e-5
    )


def test_trained_from(int8, back, tmp_path) -> None:
    model, plain = Model(int8, CPU), Model(back, CPU)
    for name, tensor in model.tensors().items():
        assert tensor.is_leaf and torch.equal(tensor, plain.tensors()[name]), name
    model.save(tmp_path / "trained", torch.float32)
    assert_same(tmp_path / "trained", int8)
    config = json.loads((tmp_path / "trained" / "config.json").read_text())
    assert config == json.loads((back / "config.json").read_text())


def test_refused(whole, int8, tmp_path, monkeypatch) -> None:
    message = r"config\.json: model_type: expected 'm3fast-int8', found 'xlm-roberta'$"
    with pytest.raises(CheckpointError, match=message):
        dequantize(whole, tmp_path / "out", torch.float16)
    with pytest.raises(InputError, match=r"dtype: expected torch\.float16 .*, found torch\.bfl"):
        dequantize(int8, tmp_path / "out", torch.bfloat16)
    with pytest.raises(InputError, match="output: expected a new or an empty folder"):
        dequantize(int8, whole, torch.float16)
    large = make_checkpoint(tmp_path / "large")
    edit_weights(large, lambda s: s[QUERY].mul_(1e6))
    large = quantize(large, tmp_path / "large-int8").folder
    with pytest.raises(CheckpointError, match=f"{QUERY}: expected finite values in float16"):
        dequantize(large, tmp_path / "out", torch.float16)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=9))
    with pytest.raises(InputError, match="output: expected room for "):
        dequantize(int8, tmp_path / "out", torch.float16)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["large", "large-int8"]


def test_from_the_command_line(int8, back, tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["quantize", str(int8), "-o", str(out), "--to", "float32"]) == 0
    assert capsys.readouterr().out.startswith(f"{out}: 5.")
    assert (out / "model.safetensors").read_bytes() == (back / "model.safetensors").read_bytes()
    assert main(["quantize", str(back), "-o", str(tmp_path / "b"), "--to", "float16"]) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1
    assert "expected 'm3fast-int8', found 'xlm-roberta'" in error
