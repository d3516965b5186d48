"""modules.json: sentence-transformers' own vectors where it is honoured, a name where not."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import TEXTS, make_checkpoint
from sentencefolders import LISTED, MIXED, ST, edit, load, saved, theirs, with_dense, write
from torch import nn

from m3fast import BGEM3FlagModel, CheckpointError
from m3fast.checkpoint.listing import ACTIVATIONS, MODULES
from m3fast.checkpoint.sentence import SETTINGS


def chains() -> dict[str, list]:
    from sentence_transformers.base.modules import Dense, Normalize
    from sentence_transformers.sentence_transformer.modules import Dropout, LayerNorm

    return {
        "none": [],
        "as LaBSE": [Dense(40, 40), Normalize()],
        "narrow": [Dense(40, 12, bias=False, activation_function=nn.Identity())],
        "two": [Dense(40, 64, activation_function=nn.GELU()), Dense(64, 7), Normalize()],
        "norms": [LayerNorm(40), Normalize(), Dense(40, 20), LayerNorm(20)],
        "residual": [Dense(40, 40, use_residual=True), Dense(40, 9, use_residual=True)],
        "dropout": [Dropout(0.5), Dense(40, 8)],
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["none", "as LaBSE", "narrow", "two", "norms", "residual", "dropout"]
)
def test_modules_give_the_same_vectors(tmp_path, name) -> None:
    modules = chains()[name]
    model_type = "bert" if name == "as LaBSE" else "xlm-roberta"
    path = saved(tmp_path, *modules, model_type=model_type, pooling="mean" if modules else "cls")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        engine = load(path, normalize=None)
    assert [str(w.message).count("Dropout") for w in said] == [1] * (name == "dropout")
    wanted = theirs(path)
    length = np.linalg.norm(wanted, axis=1, keepdims=True)
    found = engine.encode(MIXED).dense
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted / length, atol=2e-6)
    if "Normalize" not in (path / MODULES).read_text():
        raw = engine.encode(MIXED, normalize=False).dense
        np.testing.assert_allclose(raw, wanted, atol=2e-6 * float(length.max()))
    cut = engine.encode(MIXED, truncate_dim=5).dense
    np.testing.assert_allclose(cut, theirs(path, truncate_dim=5, normalize_embeddings=True),
                               atol=2e-6)  # fmt: skip
    drop_in = BGEM3FlagModel(str(path), devices="cpu", pooling_method=engine.config.pooling)
    assert drop_in.encode(TEXTS)["dense_vecs"].shape == (len(TEXTS), wanted.shape[1])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(tmp_path, activation) -> None:
    path = make_checkpoint(tmp_path, m3_heads=False)
    plain = load(path, normalize=False).encode(TEXTS).dense
    with_dense(path, activation_function=f"torch.nn.modules.activation.{activation}")
    found = load(path, normalize=False).encode(TEXTS).dense
    linear = torch.load(path / "2_Dense" / "pytorch_model.bin")
    product = torch.from_numpy(plain) @ linear["linear.weight"].T + linear["linear.bias"]
    np.testing.assert_allclose(found, getattr(nn, activation)()(product), atol=3e-5)


def replace_type(path: Path, i: int, kind: str) -> None:
    listed = json.loads((path / MODULES).read_text())
    listed[i]["type"] = kind
    write(path, MODULES, listed)


REFUSED = {
    "module": (lambda p: write(p, MODULES, [*json.loads((p / MODULES).read_text()), LISTED]),
               r"modules\.json: 3_X: expected Dense, .*found 'X'"),
    "no pooling": (lambda p: write(p, MODULES, json.loads((p / MODULES).read_text())[:1]),
                   r"modules\.json: expected Transformer and Pooling first"),
    "between": (lambda p: write(p, MODULES, [json.loads((p / MODULES).read_text())[i]
                                             for i in (0, 2, 1)]), "Pooling first"),
    "other package": (lambda p: replace_type(p, 0, "custom_st.Transformer"),
                      r"found \['custom_st\.Transformer', 'Pooling'\]"),
    "other's Dense": (lambda p: replace_type(p, 2, "pylate.models.Dense.Dense"),
                      r"found 'pylate\.models\.Dense\.Dense'"),
    "no list": (lambda p: write(p, MODULES, {}), r"modules\.json: \[0\]: expected a type"),
    "outside": (lambda p: write(p, MODULES, [{"type": f"{ST}.Transformer", "path": "../x"}]),
                "inside the folder"),
    "no weights": (lambda p: (p / "2_Dense/pytorch_model.bin").unlink(), "2_Dense: expected model"),
    "no config": (lambda p: (p / "2_Dense/config.json").unlink(), r"2_Dense/config\.json"),
    "tokens": (lambda p: edit(p, "2_Dense/config.json", module_input_name="token_embeddings"),
               "module_input_name: expected 'sentence_embedding'"),
    "activation": (lambda p: edit(p, "2_Dense/config.json", activation_function="my.Swish"),
                   "activation_function: .*found 'my.Swish'"),
    "softmax": (lambda p: edit(p, "2_Dense/config.json",
                               activation_function="torch.nn.modules.activation.Softmax"),
                "activation_function: .*Softmax"),
    "width": (lambda p: edit(p, "2_Dense/config.json", out_features=7), r"linear\.weight: .*\(7,"),
    "pooling": (lambda p: edit(p, "1_Pooling/config.json", pooling_mode_max_tokens=True),
                "expected exactly one"),
    "poolings": (lambda p: write(p, "1_Pooling/config.json", {"pooling_mode": ["cls", "mean"]}),
                 "expected exactly one"),
    "prompt out": (lambda p: (edit(p, "1_Pooling/config.json", include_prompt=False),
                              write(p, SETTINGS, {"prompts": {"q": "q: "}})), "include_prompt"),
    "length": (lambda p: write(p, "sentence_bert_config.json", {"max_seq_length": "12"}),
               "max_seq_length: expected tokens, found '12'"),
    "lower": (lambda p: write(p, "sentence_bert_config.json", {"do_lower_case": "yes"}),
              "do_lower_case: expected true"),
    "task": (lambda p: write(p, "sentence_bert_config.json", {"transformer_task": "fill-mask"}),
             "transformer_task: expected 'feature-extraction'"),
    "output": (lambda p: write(p, "sentence_xlnet_config.json", {"module_output_name": "scores"}),
               "module_output_name"),
    "arguments": (lambda p: write(p, "sentence_bert_config.json", {"model_args": {"lora": 1}}),
                  r"model_kwargs: .*\['lora'\]"),
    "unknown": (lambda p: write(p, "sentence_bert_config.json", {"query_length": 32}),
                "query_length: expected no such"),
    "similarity": (lambda p: write(p, SETTINGS, {"similarity_fn_name": "maxsim"}),
                   "similarity_fn_name: .*'maxsim'"),
    "default": (lambda p: write(p, SETTINGS, {"prompts": {}, "default_prompt_name": "query"}),
                "default_prompt_name: expected one of"),
    "prompts": (lambda p: write(p, SETTINGS, {"prompts": {"query": 3}}), "prompts: expected texts"),
    "kind": (lambda p: write(p, SETTINGS, {"model_type": "SparseEncoder"}), "model_type: expected"),
    "broken": (lambda p: (p / SETTINGS).write_text("{"), f"{SETTINGS}: expected JSON"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_computed_is_refused_by_name(tmp_path, case) -> None:
    change, message = REFUSED[case]
    path = make_checkpoint(tmp_path, m3_heads=False)
    with_dense(path)
    assert load(path).encode("x").dense.shape == (1, 6)
    change(path)
    with pytest.raises(CheckpointError, match=message):
        load(path)


def test_dense_is_for_the_dense_vector_alone(tmp_path) -> None:
    path = make_checkpoint(tmp_path)
    plain = load(path).encode(TEXTS)
    with_dense(path)
    found = load(path).encode(TEXTS)
    assert found.dense.shape == (len(TEXTS), 6)
    np.testing.assert_array_equal(found.colbert.values, plain.colbert.values)
    np.testing.assert_array_equal(found.sparse.values, plain.sparse.values)


def test_an_encoder_in_a_folder_of_its_own(tmp_path) -> None:
    """As releases before 2.0 wrote it."""
    path = make_checkpoint(tmp_path, m3_heads=False)
    with_dense(path)
    wanted = load(path).encode(TEXTS).dense
    inner = path / "0_Transformer"
    inner.mkdir()
    for file in list(path.iterdir()):
        if file.is_file() and file.name not in (MODULES, SETTINGS):
            file.rename(inner / file.name)
    listed = json.loads((path / MODULES).read_text())
    listed[0]["path"] = inner.name
    write(path, MODULES, listed)
    np.testing.assert_array_equal(load(path).encode(TEXTS).dense, wanted)
    drop_in = BGEM3FlagModel(str(path), devices="cpu")
    assert len(drop_in.tokenizer) == len(load(path).tokenizer)
    assert drop_in.model.model.config.hidden_size == 40


def test_training_wants_nothing_behind_the_pooling(tmp_path) -> None:
    from m3fast.train.model import Model

    path = make_checkpoint(tmp_path)
    with_dense(path)
    with pytest.raises(CheckpointError, match=r"modules\.json"):
        Model(path, torch.device("cpu"))


def test_a_hub_s_modules_are_fetched(tmp_path, monkeypatch) -> None:
    import fnmatch
    import shutil

    import huggingface_hub

    made, cached = make_checkpoint(tmp_path / "hub", m3_heads=False), tmp_path / "cached"
    with_dense(made)
    (made / "2_Dense").rename(made / "projection")
    listed = json.loads((made / MODULES).read_text())
    listed[2]["path"] = "projection"
    write(made, MODULES, listed)
    (made / "onnx").mkdir()
    (made / "onnx" / "model.onnx").write_bytes(b"large")

    def download(hub_id: str, *, cache_dir: object, allow_patterns: list[str]) -> str:
        for file in (f for f in made.rglob("*") if f.is_file()):
            name = str(file.relative_to(made))
            if any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                (cached / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, cached / name)
        return str(cached)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    found = load("some/model").encode(TEXTS).dense
    np.testing.assert_array_equal(found, load(made).encode(TEXTS).dense)
    assert not (cached / "onnx").exists()
