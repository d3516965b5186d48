"""sentence-transformers' settings of texts and vectors: limits, prompts, similarity."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from checkpoints import TEXTS, make_checkpoint
from sentencefolders import LISTED, MIXED, SHOUT, ST, edit, load, saved, theirs, with_dense, write

from m3fast import BGEM3FlagModel, Engine, InputError
from m3fast.checkpoint.listing import MODULES
from m3fast.checkpoint.sentence import SETTINGS, Sentence


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
