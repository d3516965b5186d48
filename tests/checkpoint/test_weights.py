"""Loading: layouts, file kinds, and one clear error for each way a checkpoint can be broken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import TEXTS, TINY_VOCAB, make_checkpoint
from safetensors.torch import load_file, save_file

from m3fast import BGEM3FlagModel, CheckpointError, Engine, InputError


def load(path: Path, **kwargs) -> Engine:
    return Engine.from_pretrained(path, device="cpu", dtype="float32", **kwargs)


def test_file_kinds_agree(tmp_path) -> None:
    single = load(make_checkpoint(tmp_path / "a", seed=1)).encode(TEXTS)
    state = load_file(tmp_path / "a" / "model.safetensors")

    pickled = make_checkpoint(tmp_path / "b", seed=1, safetensors=False, prefix="roberta.")
    sharded = make_checkpoint(tmp_path / "c", seed=1)
    (sharded / "model.safetensors").unlink()
    names = sorted(state)
    parts = {"model-1-of-2.safetensors": names[::2], "model-2-of-2.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({n: state[n] for n in held}, sharded / file)
    weight_map = {n: file for file, held in parts.items() for n in held}
    index = sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))

    for path in (pickled, sharded):
        found = load(path).encode(TEXTS)
        np.testing.assert_array_equal(single.dense, found.dense)
        np.testing.assert_array_equal(single.colbert.values, found.colbert.values)
        np.testing.assert_array_equal(single.sparse.values, found.sparse.values)


@pytest.mark.parametrize("model_type", ["xlm-roberta", "roberta", "bert"])
@pytest.mark.parametrize("pooling", ["cls", "mean", "last_token"])
def test_dense_only_layouts_match_transformers(tmp_path, model_type, pooling) -> None:
    from transformers import AutoModel

    path = make_checkpoint(tmp_path, model_type=model_type, m3_heads=False, pooling=pooling)
    engine = load(path)
    found = engine.encode(TEXTS)
    assert found.sparse is None and found.colbert is None
    model = AutoModel.from_pretrained(path, dtype=torch.float32).eval()
    tokens = engine.tokenizer.encode(TEXTS, 512)
    for i, (a, b) in enumerate(zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)):
        with torch.no_grad():
            hidden = model(torch.tensor(tokens.ids[a:b], dtype=torch.int64)[None])[0][0]
        pooled = {"cls": hidden[0], "mean": hidden.mean(0), "last_token": hidden[-1]}[pooling]
        wanted = torch.nn.functional.normalize(pooled, dim=-1)
        np.testing.assert_allclose(found.dense[i], wanted.numpy(), atol=2e-6)
    for name in ("sparse", "colbert"):
        with pytest.raises(InputError, match=f"{name}: .*{name}_linear.pt"):
            engine.encode("x", **{name: True})
    drop_in = BGEM3FlagModel(str(path), use_fp16=False, devices="cpu", pooling_method=pooling)
    np.testing.assert_allclose(drop_in.encode(TEXTS)["dense_vecs"], found.dense, atol=1e-6)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def edit_state(change):
    def edit(path: Path) -> None:
        file = path / "model.safetensors"
        state = load_file(file)
        change(state)
        save_file(state, file)

    return edit


def edit_config(**changes):
    def edit(path: Path) -> None:
        config = json.loads((path / "config.json").read_text())
        kept = {k: v for k, v in {**config, **changes}.items() if v is not None}
        (path / "config.json").write_text(json.dumps(kept))

    return edit


QUERY = "encoder.layer.1.attention.self.query.weight"
SPARSE_BIAS = {"weight": torch.zeros(1, 40)}
BROKEN = {
    "no config": (lambda p: (p / "config.json").unlink(), r"config\.json: .*found no file"),
    "config not json": (lambda p: cut(p / "config.json"), r"config\.json: expected JSON"),
    "config not object": (lambda p: (p / "config.json").write_text("[]"), r"config\.json: .*list"),
    "config lacks": (edit_config(hidden_size=None), "hidden_size: expected int, found None"),
    "config type": (edit_config(hidden_size="40"), "hidden_size: expected int, found '40'"),
    "config zero": (edit_config(num_hidden_layers=0), "num_hidden_layers: expected a positive"),
    "config heads": (edit_config(num_attention_heads=7), "hidden_size: expected a multiple"),
    "config model": (edit_config(model_type="gpt2"), "model_type: .*found 'gpt2'"),
    "config act": (edit_config(hidden_act="relu"), "hidden_act: expected 'gelu', found 'relu'"),
    "no weights": (lambda p: (p / "model.safetensors").unlink(), "model.safetensors or pytorch"),
    "cut weights": (lambda p: cut(p / "model.safetensors"), r"model\.safetensors: expected a"),
    "no tensor": (edit_state(lambda s: s.pop(QUERY)), f"{QUERY}: expected shape .*no such tensor"),
    "shape": (
        edit_state(lambda s: s.update({QUERY: torch.zeros(40, 41)})),
        rf"model\.safetensors: {QUERY}: expected shape \(40, 40\), found \(40, 41\)",
    ),
    "type": (
        edit_state(lambda s: s.update({QUERY: torch.zeros(40, 40, dtype=torch.int32)})),
        f"{QUERY}: expected a float type, found torch.int32",
    ),
    "one head": (lambda p: (p / "sparse_linear.pt").unlink(), r"sparse_linear\.pt: expected both"),
    "cut head": (lambda p: cut(p / "colbert_linear.pt"), r"colbert_linear\.pt: expected a state"),
    "empty head": (lambda p: (p / "colbert_linear.pt").write_bytes(b""), r"colbert_linear\.pt"),
    "head bias": (
        lambda p: torch.save(SPARSE_BIAS, p / "sparse_linear.pt"),
        r"sparse_linear\.pt: bias: expected a tensor, found NoneType",
    ),
    "head shape": (
        lambda p: torch.save({**SPARSE_BIAS, "weight": torch.zeros(1, 9)}, p / "sparse_linear.pt"),
        r"sparse_linear\.pt: weight: expected shape \(1, 40\), found \(1, 9\)",
    ),
    "head code": (
        lambda p: torch.save({"weight": print}, p / "sparse_linear.pt"),
        r"sparse_linear\.pt: expected a state dict",
    ),
    "no tokenizer": (lambda p: (p / "tokenizer.json").unlink(), "tokenizer"),
    "cut tokenizer": (lambda p: cut(p / "tokenizer.json"), r"tokenizer\.json"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    path = make_checkpoint(tmp_path_factory.mktemp("whole"))
    load(path)
    return path


@pytest.mark.parametrize("name", BROKEN)
def test_broken(whole, tmp_path, name) -> None:
    breakage, message = BROKEN[name]
    path = shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    breakage(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_tokenizer_larger_than_the_model(tmp_path) -> None:
    engine = load(make_checkpoint(tmp_path, vocab=TINY_VOCAB - 1))  # <mask> has no row
    engine.encode("plain words")
    with pytest.raises(InputError, match=f"texts: .*{TINY_VOCAB - 1}"):
        engine.encode(["plain words", "a <mask>"])


def test_bad_pooling_config(tmp_path) -> None:
    path = make_checkpoint(tmp_path, pooling="cls")
    file = path / "1_Pooling" / "config.json"
    file.write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(CheckpointError, match="1_Pooling"):
        load(path)
    file.write_text('{"pooling_mode": "mean"}')
    assert load(path).options.pooling == "mean"


def test_colbert_dim(tmp_path) -> None:
    path = make_checkpoint(tmp_path, colbert_dim=24)
    assert load(path).encode("a b c").colbert.values.shape[1] == 24
    assert load(path, colbert_dim=24).encode("a b c").colbert.values.shape[1] == 24
    with pytest.raises(CheckpointError, match=r"colbert_linear\.pt: weight: .*\(16, 40\)"):
        load(path, colbert_dim=16)


@pytest.mark.parametrize("model", ["no/such/folder", "./nowhere", "nothing", "", "a b"])
def test_not_a_model(model) -> None:
    with pytest.raises(CheckpointError, match=r"^model: expected"):
        Engine.from_pretrained(model)


def test_a_file_is_not_a_model(tmp_path) -> None:
    (tmp_path / "x").write_text("x")
    with pytest.raises(CheckpointError, match="expected a folder"):
        Engine.from_pretrained(tmp_path / "x")


def test_a_hub_id_that_cannot_be_fetched(tmp_path, monkeypatch) -> None:
    import huggingface_hub

    def offline(*args, **kwargs):
        raise huggingface_hub.errors.LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(CheckpointError, match="'BAAI/bge-m3' could not be fetched"):
        Engine.from_pretrained("BAAI/bge-m3", cache_dir=tmp_path)


def test_a_hub_id_is_fetched_without_spare_weights(tmp_path, monkeypatch) -> None:
    import huggingface_hub

    made = make_checkpoint(tmp_path, safetensors=False)
    asked: list[str] = []

    def download(hub_id, *, cache_dir, allow_patterns):
        asked.extend(allow_patterns)
        return str(made)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load("BAAI/bge-m3").encode("x").dense.shape == (1, 40)
    assert "pytorch_model.bin" in asked and "colbert_linear.pt" in asked
