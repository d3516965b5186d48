"""Checkpoints in int8: what is written, that it gives the same bits, an error for each fault."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from checkpoints import TEXTS, TINY, edit_weights, make_checkpoint
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sentencefolders import edit, with_dense, write

from m3fast import CheckpointError, Engine, InputError
from m3fast.checkpoint import quantize as module
from m3fast.checkpoint.quantize import quantize

WORD = "embeddings.word_embeddings.weight"
QUERY = "encoder.layer.1.attention.self.query.weight"
NORM = "encoder.layer.0.output.LayerNorm.weight"


def load(path: Path, dtype: str = "auto", **options) -> Engine:
    return Engine.from_pretrained(path, device="cpu", dtype=dtype, **options)


def same(path: Path, made: Path) -> Engine:
    """The engine of the new folder, which gives bit for bit what int8 of the old one does."""
    engine = load(made)
    assert engine.dtype == torch.int8
    found, wanted = engine.encode(TEXTS), load(path, "int8").encode(TEXTS)
    for a, b in zip(found.to_arrays().items(), wanted.to_arrays().items(), strict=True):
        np.testing.assert_array_equal(a[1], b[1], err_msg=a[0])
    return engine


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("whole") / "floats", seed=3)


@pytest.fixture(scope="module")
def int8(whole) -> Path:
    return quantize(whole, whole.with_name("int8")).folder


def test_the_embedded_model(tiny_in_floats, tmp_path) -> None:
    """It is in int8: of its float form comes what it is."""
    made = quantize(tiny_in_floats, tmp_path / "out")
    same(tiny_in_floats, made.folder)
    names = {str(file.relative_to(TINY)) for file in TINY.rglob("*") if file.is_file()}
    assert names == {
        str(file.relative_to(made.folder)) for file in made.folder.rglob("*") if file.is_file()
    }
    for name in names - {"config.json", "model.safetensors"}:
        assert (TINY / name).read_bytes() == (made.folder / name).read_bytes()
    assert made.before == (tiny_in_floats / "model.safetensors").stat().st_size
    assert made.after == (made.folder / "model.safetensors").stat().st_size < 0.35 * made.before
    after = load_file(made.folder / "model.safetensors")
    for name, tensor in load_file(TINY / "model.safetensors").items():
        # A scale is a quotient: its last bit may differ.
        torch.testing.assert_close(after[name].to(tensor.dtype), tensor, rtol=1e-6, atol=0)


def test_what_is_written(whole, int8) -> None:
    before, after = load_file(whole / "model.safetensors"), load_file(int8 / "model.safetensors")
    with safe_open(int8 / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    bytes_ = {name for name, tensor in after.items() if tensor.dtype == torch.int8}
    layer = ("attention.self.query", "attention.self.key", "attention.self.value")
    layer += ("attention.output.dense", "intermediate.dense", "output.dense")
    assert bytes_ == {
        *(f"encoder.layer.{i}.{name}.weight" for i in range(2) for name in layer),
        WORD, "embeddings.position_embeddings.weight",
    }  # fmt: skip
    assert set(after) == set(before) | {f"{name}_scale" for name in bytes_}
    for name, tensor in before.items():
        if name not in bytes_:
            torch.testing.assert_close(after[name], tensor, rtol=0, atol=0)
            continue
        scale = after[f"{name}_scale"]
        assert scale.dtype == torch.float32 and scale.shape == tensor.shape[:1]
        found = after[name].double() * scale.double()[:, None]
        # Half a step of each row, and the rounding of the division by the scale.
        assert ((found - tensor).abs() <= 0.50002 * scale[:, None]).all()


@pytest.mark.parametrize("model_type", ["bert", "xlm-roberta"])
def test_pickled_and_prefixed(tmp_path, model_type) -> None:
    path = make_checkpoint(
        tmp_path / "a", model_type=model_type, safetensors=False, prefix="bert.", m3_heads=False
    )
    made = quantize(path, tmp_path / "b").folder
    assert WORD in load_file(made / "model.safetensors")
    assert not (made / "pytorch_model.bin").exists()
    assert same(path, made).config.model_type == model_type


def test_sharded_halves_without_the_pooler(tmp_path) -> None:
    path = make_checkpoint(tmp_path / "a")
    state = {n: t.half() for n, t in load_file(path / "model.safetensors").items()}
    state["pooler.dense.weight"] = torch.zeros(40, 40)
    (path / "model.safetensors").unlink()
    files = {n: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, n in enumerate(state)}
    for file in set(files.values()):
        save_file({n: state[n] for n in state if files[n] == file}, path / file)
    write(path, "model.safetensors.index.json", {"weight_map": files})
    made = quantize(path, tmp_path / "b")
    same(path, made.folder)
    assert made.before == sum((path / file).stat().st_size for file in set(files.values()))
    assert len(list(made.folder.glob("*.safetensors*"))) == 1
    assert "pooler.dense.weight" not in load_file(made.folder / "model.safetensors")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_layer_that_bytes_do_not_hold_stays_as_it_is(tmp_path, dtype) -> None:
    path = make_checkpoint(tmp_path / "a")
    rough = "encoder.layer.1.output.dense.weight"

    def change(state: dict[str, torch.Tensor]) -> None:
        state[rough][:, 0] = 30 * state[rough].std()
        state.update({name: tensor.to(dtype) for name, tensor in state.items()})

    edit_weights(path, change)
    made = quantize(path, tmp_path / "b").folder
    after = load_file(made / "model.safetensors")
    assert after[rough].dtype == dtype
    assert torch.equal(after[rough], load_file(path / "model.safetensors")[rough])
    kinds = {name: t.dtype for name, t in after.items() if t.is_floating_point()}
    assert {name for name, kind in kinds.items() if kind != torch.float32} <= {rough}
    same(path, made)


def test_sentence_transformers_folder_with_an_encoder_inside(tmp_path) -> None:
    path = make_checkpoint(tmp_path / "a", m3_heads=False)
    with_dense(path)
    listed = json.loads((path / "modules.json").read_text())
    listed[0]["path"] = "0_Transformer"
    write(path, "modules.json", listed)
    (path / "0_Transformer").mkdir()
    for file in [file for file in path.iterdir() if file.is_file() and file.name != "modules.json"]:
        file.rename(path / "0_Transformer" / file.name)
    write(path, "config_sentence_transformers.json", {"prompts": {"query": "Query: "}})
    (path / "onnx").mkdir()
    (path / "onnx" / "model.onnx").write_text("weights in floats")
    made = quantize(path, tmp_path / "b").folder
    engine = same(path, made)
    assert engine.sentence.prompts and engine.encode("a").dense.shape == (1, 6)
    assert sorted(file.name for file in made.iterdir()) == [
        "0_Transformer", "1_Pooling", "2_Dense", "config_sentence_transformers.json", "modules.json"
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_computed_in_floats(whole, int8, tmp_path, dtype) -> None:
    plain = shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    after = load_file(int8 / "model.safetensors")
    floats = {
        n: t.float() * after[f"{n}_scale"][:, None] if t.dtype == torch.int8 else t
        for n, t in after.items() if not n.endswith("_scale")
    }  # fmt: skip
    save_file(floats, plain / "model.safetensors")
    found, wanted = load(int8, dtype).encode(TEXTS), load(plain, dtype).encode(TEXTS)
    np.testing.assert_array_equal(found.dense, wanted.dense)


def test_the_word_table_is_not_copied(int8) -> None:
    word = load(int8).runner.weights.word
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    start = word.data.data_ptr()
    inside = [m for m in maps if int(m[0].split("-")[0], 16) <= start < int(m[0].split("-")[1], 16)]
    assert inside[0][-1] == str(int8 / "model.safetensors")


def test_transformers_refuses_it(int8) -> None:
    from transformers import AutoModel, XLMRobertaModel

    with pytest.raises(ValueError, match="m3fast-int8"):
        AutoModel.from_pretrained(int8)
    with pytest.raises(ValueError, match="quantization config"):
        XLMRobertaModel.from_pretrained(int8)


def put(name: str, change):
    return lambda path: edit_weights(path, lambda s: s.update({name: change(s.get(name))}))


def drop(path: Path) -> None:
    edit_weights(path, lambda s: s.pop(f"{QUERY}_scale"))


SCALES, SCALE = f"{QUERY}_scale", rf"model\.safetensors: {QUERY}_scale: expected"
BROKEN = {
    "no scales": (drop, rf"{SCALE} shape \(40,\), found no such tensor"),
    "shape": (put(SCALES, lambda t: t[:, None]), rf"{SCALE} shape \(40,\), found \(40, 1"),
    "type": (put(SCALES, torch.Tensor.half), rf"{SCALE} torch.float32, found torch.fl"),
    "negative": (put(SCALES, torch.neg), f"{SCALE} 0 or more, found -"),
    "not finite": (put(SCALES, lambda t: t / 0), f"{SCALE} finite values, found inf"),
    "words": (put(f"{WORD}_scale", torch.neg), f"{WORD}_scale: expected 0 or more"),
    "data": (put(QUERY, lambda t: t[1:]), rf"{QUERY}: expected shape \(40, 40\), found \(39, 40"),
    "integers": (put(QUERY, torch.Tensor.int), f"{QUERY}: expected a float type, found torch.in"),
    "norm": (put(NORM, torch.Tensor.char), f"{NORM}: expected a float type, found torch.int8"),
    "no layout": (
        lambda path: edit(path, "config.json", m3fast_model_type=None),
        r"config\.json: m3fast_model_type: expected str, found None",
    ),
    "another": (
        lambda path: edit(path, "config.json", model_type="xlm-roberta",
                          quantization_config={"quant_method": "compressed-tensors"}),
        r"config\.json: quantization_config: .*, found 'compressed-tensors'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken(int8, tmp_path, name) -> None:
    breakage, message = BROKEN[name]
    path = shutil.copytree(int8, tmp_path, dirs_exist_ok=True)
    breakage(path)
    for dtype in ("int8", "float32"):
        with pytest.raises(CheckpointError, match=message) as caught:
            load(path, dtype)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def full(*_: object) -> SimpleNamespace:
    return SimpleNamespace(free=1000)


def test_refused(whole, int8, tmp_path, monkeypatch) -> None:
    with pytest.raises(CheckpointError, match="model_type: expected floats, found 'm3fast-int8'"):
        quantize(int8, tmp_path / "out")
    with pytest.raises(InputError, match="output: expected a new or an empty folder"):
        quantize(whole, int8)
    with pytest.raises(InputError, match=r"output: expected an existing folder, found '.*/none'"):
        quantize(whole, tmp_path / "none" / "out")
    monkeypatch.setattr(module.shutil, "disk_usage", full)
    with pytest.raises(InputError, match=r"output: expected room for [\d,]{9} bytes .* 1,000"):
        quantize(whole, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing(whole, tmp_path, monkeypatch, error) -> None:
    (tmp_path / "out").mkdir()
    written: list[object] = []

    def put(out, tensor) -> None:
        written.append(out.write(b"0"))
        if len(written) == 9:
            raise error

    monkeypatch.setattr(module, "_put", put)
    with pytest.raises(type(error)):
        quantize(whole, tmp_path / "out")
    assert [*tmp_path.rglob("*")] == [tmp_path / "out"] and len(written) == 9
    monkeypatch.undo()
    same(whole, quantize(whole, tmp_path / "out").folder)  # an empty folder is no obstacle
