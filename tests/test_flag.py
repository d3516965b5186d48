"""The drop-in's own manners: empty input, errors, several processes, other people's wrappers."""

from __future__ import annotations

import pickle
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import TEXTS, make_checkpoint

from m3fast import BGEM3FlagModel, CheckpointError, InputError

ALL = dict(return_dense=True, return_sparse=True, return_colbert_vecs=True)
PAIRS = [(TEXTS[0], TEXTS[3]), (TEXTS[4], TEXTS[5]), (TEXTS[0], TEXTS[10])]


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"), seed=9)


@pytest.fixture(scope="module")
def model(path) -> BGEM3FlagModel:
    return BGEM3FlagModel(str(path), devices="cpu")


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


def test_scores_in_chunks_are_the_same(model) -> None:
    whole = model.compute_score(PAIRS)
    for batch_size in (1, 2):
        chunked = model.compute_score(PAIRS, batch_size=batch_size)
        for key, values in whole.items():
            assert all(type(x) is float for x in values)
            assert chunked[key] == pytest.approx(values, abs=1e-6)
    single = model.compute_score(PAIRS[0])
    assert {k: pytest.approx(v[0], abs=1e-6) for k, v in whole.items()} == single


def test_weights(model) -> None:
    d, s, c = 0.2, 0.3, 0.7
    found = model.compute_score(PAIRS, weights_for_different_modes=[d, s, c])
    for i in range(len(PAIRS)):
        dense, sparse, colbert = (found[k][i] for k in ("dense", "sparse", "colbert"))
        assert found["sparse+dense"][i] == pytest.approx((s * sparse + d * dense) / (s + d), 1e-5)
        total = (d * dense + s * sparse + c * colbert) / (d + s + c)
        assert found["colbert+sparse+dense"][i] == pytest.approx(total, 1e-5)


def test_the_score_two_ways(model) -> None:
    queries = model.encode([q for q, _ in PAIRS], **ALL)
    passages = model.encode([p for _, p in PAIRS], **ALL)
    scores = model.compute_score(PAIRS)
    for i in range(len(PAIRS)):
        q, p = queries["colbert_vecs"][i], passages["colbert_vecs"][i]
        assert float(model.colbert_score(q, p)) == pytest.approx(scores["colbert"][i], abs=1e-5)
        q, p = queries["lexical_weights"][i], passages["lexical_weights"][i]
        lexical = model.compute_lexical_matching_score(q, p)
        assert lexical == pytest.approx(scores["sparse"][i], abs=1e-5)
        dense = queries["dense_vecs"][i] @ passages["dense_vecs"][i]
        assert dense == pytest.approx(scores["dense"][i], abs=1e-5)


def test_lexical_scores_of_tokens_and_half_floats(model) -> None:
    one, two = {"a": 0.5, "b": 2.0}, {"b": 0.25, "c": 1.0}
    assert model.compute_lexical_matching_score(one, two) == 0.5
    assert model.compute_lexical_matching_score(one, {}) == 0
    matrix = model.compute_lexical_matching_score([one, two], [one, two, {}])
    np.testing.assert_allclose(matrix, [[4.25, 0.5, 0], [0.5, 1.0625, 0]])
    half = [{k: np.float16(v) for k, v in row.items()} for row in (one, two)]
    np.testing.assert_allclose(model.compute_lexical_matching_score(half, half), matrix[:, :2])
    with pytest.raises(InputError, match="lexical_weights_1"):
        model.compute_lexical_matching_score([one], two)


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
    with pytest.raises(Exception, match="pool: a worker process died"):
        model.encode(TEXTS)
    model.stop_self_pool()
    assert model.pool is None
    scores, wanted_scores = model.compute_score(PAIRS), alone.compute_score(PAIRS)
    for key, values in wanted_scores.items():
        assert scores[key] == pytest.approx(values, abs=1e-5)


def test_pickle(path, model) -> None:
    copy = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(copy.encode(TEXTS)["dense_vecs"], model.encode(TEXTS)["dense_vecs"])
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
        (lambda m: m.encode(None), "texts"),
        (lambda m: m.encode(["a", None]), r"texts\[1\]"),
        (lambda m: m.encode(iter(["a"])), "texts"),
        (lambda m: m.encode(np.array(["a"])), "texts"),
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


def test_pymilvus_style_wrapper(path) -> None:
    """What pymilvus's BGEM3EmbeddingFunction does with the class, step for step."""
    model = BGEM3FlagModel(
        model_name_or_path=str(path), batch_size=16, device="cpu", normalize_embeddings=True,
        use_fp16=False, return_dense=True, return_sparse=True, return_colbert_vecs=False,
    )  # fmt: skip
    dims = (
        model.model.model.config.hidden_size,
        len(model.tokenizer),
        model.model.colbert_linear.out_features,
    )
    assert dims == (40, model._engine(None).config.vocab_size, 40)
    found = model.encode(sentences=TEXTS, return_dense=True, return_sparse=True)
    assert len(list(found["dense_vecs"])) == len(TEXTS)
    for row in found["lexical_weights"]:
        ids = [int(k) for k in row]
        values = np.array(list(row.values()), dtype=np.float64)
        assert len(ids) == len(values) and all(0 <= i < dims[1] for i in ids)
