"""The drop-in's own behaviour: empty input, types, errors, several processes."""

from __future__ import annotations

import pickle
from collections import defaultdict

import numpy as np
import pytest
import torch
from checkpoints import TEXTS

from m3fast import BGEM3FlagModel, CheckpointError, Engine, InputError, M3FastError
from m3fast.checkpoint.quantize import quantize

ALL = dict(return_dense=True, return_sparse=True, return_colbert_vecs=True)
PAIRS = [(TEXTS[0], TEXTS[3]), (TEXTS[4], TEXTS[5]), (TEXTS[0], TEXTS[10])]


def test_empty_list_gives_empty_results(model) -> None:
    found = model.encode([], **ALL)
    assert found["dense_vecs"].shape == (0, 40) and found["dense_vecs"].dtype == np.float32
    assert found["lexical_weights"] == found["colbert_vecs"] == []
    assert model.compute_score([]) == []


def test_types(model) -> None:
    found = model.encode(TEXTS, **ALL)
    row = found["lexical_weights"][0]
    assert type(row) is defaultdict and row["missing"] == 0
    del row["missing"]
    assert all(type(k) is str and type(v) is np.float32 for k, v in row.items())
    assert [v.shape for v in found["colbert_vecs"][1:3]] == [(1, 40), (1, 40)]
    assert found["lexical_weights"][1] == {}
    # No array keeps another text's memory alive.
    assert all(v.base is None for v in found["colbert_vecs"])


def test_bf16_is_honoured_on_a_cpu(path, model) -> None:
    rough = BGEM3FlagModel(str(path), devices="cpu", use_bf16=True)
    found, exact = rough.encode(TEXTS)["dense_vecs"], model.encode(TEXTS)["dense_vecs"]
    assert found.dtype == np.float32
    assert 1e-6 < abs(found - exact).max() < 0.05


def test_int8_is_asked_for(path, tmp_path) -> None:
    small = BGEM3FlagModel(str(path), devices="cpu", dtype="int8")
    wanted = Engine.from_pretrained(path, device="cpu", dtype="int8").encode(TEXTS).dense
    np.testing.assert_array_equal(small.encode(TEXTS)["dense_vecs"], wanted)
    assert pickle.loads(pickle.dumps(small)).kwargs == {"dtype": "int8"}
    made = str(quantize(path, tmp_path / "int8").folder)
    auto = BGEM3FlagModel(made, devices="cpu", dtype="auto", use_bf16=True)
    np.testing.assert_array_equal(auto.encode(TEXTS)["dense_vecs"], wanted)
    assert auto.tokenizer("a")["input_ids"] == small.tokenizer("a")["input_ids"]
    floats = BGEM3FlagModel(made, devices="cpu").encode(TEXTS)["dense_vecs"]
    assert 1e-6 < abs(floats - wanted).max() < 0.1
    with pytest.raises(InputError, match=r"^dtype: expected 'auto' or one of .*found 'int3'"):
        BGEM3FlagModel(str(path), devices="cpu", dtype="int3")


def test_none_falls_back_to_the_constructor(path) -> None:
    model = BGEM3FlagModel(
        str(path), devices="cpu", return_dense=False, return_sparse=True, passage_max_length=7
    )
    found = model.encode(TEXTS)
    assert found["dense_vecs"] is None and found["colbert_vecs"] is None
    found = model.encode(TEXTS, return_colbert_vecs=True)
    assert max(map(len, found["colbert_vecs"])) == 6
    found = model.encode_queries(TEXTS, return_colbert_vecs=True)
    assert max(map(len, found["colbert_vecs"])) > 100


def test_columns_of_texts(model) -> None:
    import pandas
    import pyarrow

    wanted = model.encode(TEXTS, **ALL)
    for column in (pandas.Series(TEXTS), np.array(TEXTS), pyarrow.array(TEXTS),
                   pyarrow.chunked_array([TEXTS[:3], TEXTS[3:]]), tuple(TEXTS)):  # fmt: skip
        for encode in (model.encode, model.encode_corpus, model.encode_queries):
            found = encode(column, **ALL)
            if encode is not model.encode_queries:
                np.testing.assert_array_equal(found["dense_vecs"], wanted["dense_vecs"])
            assert len(found["lexical_weights"]) == len(TEXTS)
    with pytest.raises(InputError, match=r"texts\[1\]"):
        model.encode(pandas.Series(["a", None]))


@pytest.mark.slow
def test_several_processes(path) -> None:
    model = BGEM3FlagModel(str(path), devices=["cpu", "cpu"])
    alone = BGEM3FlagModel(str(path), devices="cpu")
    found, wanted = model.encode(TEXTS, **ALL), alone.encode(TEXTS, **ALL)
    np.testing.assert_allclose(found["dense_vecs"], wanted["dense_vecs"], atol=2e-6)
    assert [list(r) for r in found["lexical_weights"]] == [
        list(r) for r in wanted["lexical_weights"]
    ]
    for a, b in zip(found["colbert_vecs"], wanted["colbert_vecs"], strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)
    with pytest.raises(InputError, match="texts"):  # a worker's error reaches the caller
        model.encode(["a", None], **ALL)
    model.pool["processes"][0].kill()
    model.pool["processes"][0].join()
    with pytest.raises(M3FastError, match="pool: a worker process died"):
        model.encode(TEXTS)
    model.stop_self_pool()
    assert model.pool is None
    scores, wanted_scores = model.compute_score(PAIRS), alone.compute_score(PAIRS)
    for key, values in wanted_scores.items():
        assert scores[key] == pytest.approx(values, abs=1e-5)


def test_pickle(path, model) -> None:
    copy = pickle.loads(pickle.dumps(model))
    found, wanted = (m.encode(TEXTS)["dense_vecs"] for m in (copy, model))
    np.testing.assert_array_equal(found, wanted)
    assert len(copy.tokenizer) == len(model.tokenizer)


def test_target_devices() -> None:
    pick = BGEM3FlagModel.get_target_devices
    assert pick("cpu") == ["cpu"] and pick(1) == ["cuda:1"]
    assert pick([0, 1]) == ["cuda:0", "cuda:1"] and pick(["cpu", "cuda:1"]) == ["cpu", "cuda:1"]
    if not torch.cuda.is_available():
        assert pick(None) == ["cpu"]
    for wrong in ([], 1.5, [None]):
        with pytest.raises(InputError, match="devices"):
            pick(wrong)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda m: m.encode(None), "sentences"),
        (lambda m: m.encode(["a", None]), r"texts\[1\]"),
        (lambda m: m.encode(iter(["a"])), "sentences.*; make a list of an iterator"),
        (lambda m: m.encode(np.array([1.5])), "sentences"),
        (lambda m: m.encode("a", batch_size=-1), "max_texts|batch_size"),
        (lambda m: m.encode("a", max_length=2), "max_length"),
        (lambda m: m.encode("a", return_dense=False), "at least one"),
        (lambda m: m.encode("a", paddding=True), "paddding"),
        (lambda m: m.compute_score("ab"), "sentence_pairs"),
        (lambda m: m.compute_score(["a", "b", "c"]), "sentence_pairs"),
        (lambda m: m.compute_score([("a", "b"), ("c",)]), r"sentence_pairs\[1\]"),
        (lambda m: m.compute_score([("a", "b"), ("c", None)]), r"sentence_pairs\[1\]"),
        (lambda m: m.compute_score(("a", "b"), batch_size=0), "batch_size"),
        (lambda m: m.compute_score(("a", "b"), weights_for_different_modes=[1, 2]), "weights"),
        (lambda m: m.compute_score(("a", "b"), weights_for_different_modes=[]), "weights"),
        (lambda m: m.compute_score(("a", "b"), weights_for_different_modes=0.3), "weights"),
        (lambda m: m.compute_score(("a", "b"), weights_for_different_modes="abc"), "weights"),
        (lambda m: m.compute_score(("a", "b"), weights_for_different_modes=np.eye(3)), "weights"),
        (lambda m: m.compute_score([("a", "b")], weights_for_different_modes=[1, 2, np.nan]),
         "weights"),
        (lambda m: m.compute_score(None), "sentence_pairs"),
        (lambda m: m.encode(["a", None], instruction="i "), r"sentences\[1\]"),
        (lambda m: m.encode({"a": 1}), "sentences"),
    ],
)
def test_bad_input(model, call, name) -> None:
    with pytest.raises(InputError, match=name):
        call(model)


def test_bad_constructor_arguments(path) -> None:
    with pytest.raises(InputError, match="pooling"):
        BGEM3FlagModel(str(path), devices="cpu", pooling_method="max")
    with pytest.raises(InputError, match="device"):
        BGEM3FlagModel(str(path), devices="npu:0")
    with pytest.raises(CheckpointError, match="colbert_linear"):
        BGEM3FlagModel(str(path), devices="cpu", colbert_dim=7)
    with pytest.warns(RuntimeWarning, match="batchsize"):
        BGEM3FlagModel(str(path), devices="cpu", batchsize=3)
