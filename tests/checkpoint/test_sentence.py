"""sentence-transformers' files: its own vectors where they are honoured, a name where not."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import TEXTS, make_checkpoint
from torch import nn

from m3fast import BGEM3FlagModel, CheckpointError, Engine, InputError
from m3fast.checkpoint.listing import ACTIVATIONS, MODULES
from m3fast.checkpoint.sentence import SETTINGS, Sentence

MIXED = [*TEXTS, "UPPER CASE ÄÖÜ ΣΊΣΥΦΟΣ İstanbul", "long " * 600]
ST = "sentence_transformers.models"
SHOUT = {"query": "Query: ", "passage": "PASSAGE: ", "none": ""}


def saved(path: Path, *modules, model_type: str = "xlm-roberta", pooling="cls", **options) -> Path:
    """A folder that sentence-transformers wrote; `modules` follow the pooling."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    made = make_checkpoint(path / "made", seed=9, m3_heads=False, model_type=model_type)
    # Beyond 512 tokens the peer itself fails on positions that are numbered from 2.
    first = [Transformer(str(made), processor_kwargs={"model_max_length": 128})]
    first.append(Pooling(40, pooling))
    torch.manual_seed(4)
    model = SentenceTransformer(modules=[*first, *modules], device="cpu", **options)
    for module in modules:  # LayerNorm's too begin as ones and zeros
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.4)
    model.save(str(path / "saved"))
    return path / "saved"


def theirs(path: Path, texts=MIXED, **options) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(path), device="cpu")
    return model.encode(texts, show_progress_bar=False, **options)


def load(path: Path, **options) -> Engine:
    return Engine.from_pretrained(path, device="cpu", dtype="float32", **options)


def write(path: Path, name: str, value: object) -> None:
    (path / name).parent.mkdir(exist_ok=True)
    (path / name).write_text(json.dumps(value))


def edit(path: Path, name: str, **changes: object) -> None:
    write(path, name, {**json.loads((path / name).read_text()), **changes})


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


def with_dense(path: Path, **changes) -> None:
    """modules.json as older releases wrote it, with a Dense of 40 -> 6."""
    kinds = [f"{ST}.{name}" for name in ("Transformer", "Pooling", "Dense")]
    listed = [{"idx": i, "name": str(i), "path": place, "type": kinds[i]}
              for i, place in enumerate(("", "1_Pooling", "2_Dense"))]  # fmt: skip
    write(path, MODULES, listed)
    write(path, "1_Pooling/config.json", {"pooling_mode_cls_token": True})
    config = {"in_features": 40, "out_features": 6, "bias": True,
              "activation_function": "torch.nn.modules.activation.Tanh"}  # fmt: skip
    write(path, "2_Dense/config.json", {**config, **changes})
    random = torch.Generator().manual_seed(3)
    state = {"linear.weight": torch.randn(6, 40, generator=random),
             "linear.bias": torch.randn(6, generator=random)}  # fmt: skip
    torch.save(state, path / "2_Dense" / "pytorch_model.bin")


def replace_type(path: Path, i: int, kind: str) -> None:
    listed = json.loads((path / MODULES).read_text())
    listed[i]["type"] = kind
    write(path, MODULES, listed)


LISTED = {"idx": 3, "name": "3", "path": "3_X", "type": f"{ST}.X"}
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


@pytest.mark.slow
def test_settings_of_the_text(tmp_path) -> None:
    """max_seq_length, do_lower_case, prompts and default_prompt_name, one after another."""
    path = saved(tmp_path, prompts=SHOUT)

    def same(engine: Engine, **prompt: str) -> None:
        found, wanted = engine.encode(MIXED, **prompt).dense, theirs(path, **prompt)
        wanted = wanted / np.linalg.norm(wanted, axis=1, keepdims=True)
        np.testing.assert_allclose(found, wanted, atol=2e-6)

    same(load(path))
    for name in ("query", "passage", "none"):
        same(load(path), prompt_name=name)
    with pytest.raises(InputError, match=r"prompt_name: .*'passage', 'query'.*found 'other'"):
        load(path).encode("x", prompt_name="other")

    edit(path, SETTINGS, default_prompt_name="query")
    same(load(path))
    same(load(path), prompt_name="passage")
    plain = load(path).encode(MIXED, prompt_name="").dense
    np.testing.assert_allclose(plain, load(path).encode(MIXED, prompt_name="none").dense, atol=1e-7)
    ids = load(path).tokenizer.encode(MIXED, 512)
    rows = [ids.ids[a:b] for a, b in zip(ids.offsets, ids.offsets[1:], strict=False)]
    np.testing.assert_allclose(load(path).encode(rows).dense, plain, atol=2e-6)  # ids get no prompt
    # FlagEmbedding reads no prompts.
    drop_in = BGEM3FlagModel(str(path), devices="cpu")
    found = drop_in.encode(MIXED, max_length=128)["dense_vecs"]
    np.testing.assert_allclose(found, plain, atol=2e-6)

    edit(path, "sentence_bert_config.json", do_lower_case=True, max_seq_length=24)
    engine = load(path)
    assert engine.max_length == 24 and engine.encode(MIXED).n_tokens.max() == 24
    same(engine)
    assert engine.encode(MIXED, max_length=100).n_tokens.max() == 100  # a caller may want more
    assert load(path, max_length=200).max_length == 200


@pytest.mark.slow
def test_a_limit_in_the_tokenizer_s_settings(tmp_path) -> None:
    path = saved(tmp_path)
    edit(path, "tokenizer_config.json", model_max_length=20)
    assert load(path).encode(MIXED).n_tokens.max() == 20
    edit(path, "sentence_bert_config.json", tokenizer_args={"model_max_length": 16})
    found, wanted = load(path).encode(MIXED), theirs(path)
    assert found.n_tokens.max() == 16
    np.testing.assert_allclose(
        found.dense, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=2e-6
    )
    (path / MODULES).unlink()  # not a folder of sentence-transformers: the model's own limit
    edit(path, "sentence_bert_config.json", tokenizer_args={})
    assert load(path).max_length == 512


@pytest.mark.parametrize(
    ("similarity", "last", "normal"),
    [
        ("cosine", "Dense", True),
        (None, "Dense", True),
        ("dot", "Dense", False),
        ("euclidean", "Dense", False),
        ("manhattan", "Dense", False),
        ("dot", "Normalize", True),
    ],
)
def test_lengths_are_kept_where_they_are_compared(tmp_path, similarity, last, normal) -> None:
    path = make_checkpoint(tmp_path, m3_heads=False)
    with_dense(path)
    if last == "Normalize":
        listed = json.loads((path / MODULES).read_text())
        write(path, MODULES, [*listed, {**LISTED, "type": f"{ST}.Normalize"}])
    write(path, SETTINGS, {"similarity_fn_name": similarity})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        engine = load(path)
    far = similarity in ("euclidean", "manhattan")
    assert [similarity in str(w.message) for w in said] == [True] * far
    lengths = np.linalg.norm(engine.encode(TEXTS).dense, axis=1)
    assert np.allclose(lengths, 1, atol=1e-5) == normal
    assert np.allclose(np.linalg.norm(load(path, normalize=True).encode(TEXTS).dense, axis=1), 1)


def test_unknown_settings_are_said_once(tmp_path) -> None:
    path = make_checkpoint(tmp_path, m3_heads=False)
    write(path, SETTINGS, {"author": "somebody", "requirements": None})
    with pytest.warns(RuntimeWarning, match=r"\['author'\]: not read") as said:
        load(path)
    assert len(said) == 1


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


def test_nothing_said() -> None:
    assert Sentence.from_dir(Path("nowhere")) == Sentence(Path("nowhere"))


def test_prompt_of_the_command_line(tmp_path, monkeypatch) -> None:
    from m3fast.cli import main
    from m3fast.cli.store import read_npz

    path = make_checkpoint(tmp_path / "model", m3_heads=False)
    write(path, SETTINGS, {"prompts": SHOUT, "default_prompt_name": "query"})
    (tmp_path / "in.txt").write_text("one\ntwo\n")
    monkeypatch.chdir(tmp_path)
    command = ["encode", "in.txt", "--model", str(path), "--dtype", "float32", "-o"]
    assert main([*command, "default.npz"]) == 0
    assert main([*command, "named.npz", "--prompt-name", "passage"]) == 0
    assert main([*command, "none.npz", "--prompt-name", ""]) == 0
    assert main([*command, "other.npz", "--prompt-name", "other"]) == 2
    for name, prompt in (("default", "Query: "), ("named", "PASSAGE: "), ("none", "")):
        wanted = load(path).encode([prompt + "one", prompt + "two"], prompt_name="").dense
        np.testing.assert_allclose(read_npz(f"{name}.npz")[0].dense, wanted, atol=2e-6)


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
