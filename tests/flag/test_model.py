"""The drop-in's own manners: empty input, errors, several processes, other people's wrappers."""

from __future__ import annotations

import pickle
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import TEXTS, make_checkpoint

from m3fast import BGEM3FlagModel, CheckpointError, InputError, M3FastError

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


def test_weights_as_an_array(model) -> None:
    wanted = model.compute_score(PAIRS, weights_for_different_modes=[0.2, 0.3, 0.7])
    for kind in (np.float64, np.float32):
        weights = np.array([0.2, 0.3, 0.7], kind)
        found = model.compute_score(PAIRS, weights_for_different_modes=weights)
        for key, values in wanted.items():
            assert found[key] == pytest.approx(values, 1e-6)
    assert model.compute_score(np.array(PAIRS)) == model.compute_score(PAIRS)


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
        (lambda m: m.encode(iter(["a"])), "sentences"),
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


def test_pymilvus_with_the_class_swapped_in(path, monkeypatch) -> None:
    import FlagEmbedding
    from pymilvus.model.hybrid import BGEM3EmbeddingFunction

    texts = [text for text in TEXTS if text.strip()]  # its csr_array needs one weight per text
    options = dict(model_name=str(path), device="cpu", return_colbert_vecs=True)
    theirs = BGEM3EmbeddingFunction(**options)
    monkeypatch.setattr(FlagEmbedding, "BGEM3FlagModel", BGEM3FlagModel)
    ours = BGEM3EmbeddingFunction(**options)
    assert type(ours.model) is BGEM3FlagModel and ours.dim == theirs.dim
    for call in ("encode_queries", "encode_documents"):
        a, b = getattr(theirs, call)(texts), getattr(ours, call)(texts)
        assert list(a) == list(b)
        np.testing.assert_allclose(b["dense"], a["dense"], atol=1e-5)
        assert a["sparse"].shape == b["sparse"].shape
        assert abs(a["sparse"] - b["sparse"]).max() <= 2e-5
        for x, y in zip(a["colbert_vecs"], b["colbert_vecs"], strict=True):
            np.testing.assert_allclose(y, x, atol=1e-5)


README_EXAMPLES = """
from {package} import BGEM3FlagModel
model = BGEM3FlagModel({path!r}, use_fp16={fp16}, devices="cpu")

sentences_1 = ["What is BGE M3?", "Defination of BM25"]
sentences_2 = ["BGE M3 is an embedding model supporting dense retrieval, lexical matching and "
               "multi-vector interaction.",
               "BM25 is a bag-of-words retrieval function that ranks a set of documents based on "
               "the query terms appearing in each document"]

embeddings_1 = model.encode(sentences_1, batch_size=12, max_length=8192)["dense_vecs"]
embeddings_2 = model.encode(sentences_2)["dense_vecs"]
similarity = embeddings_1 @ embeddings_2.T

options = dict(return_dense=True, return_sparse=True, return_colbert_vecs=False)
output_1 = model.encode(sentences_1, **options)
output_2 = model.encode(sentences_2, **options)
tokens = model.convert_id_to_token(output_1["lexical_weights"])
lexical_scores = model.compute_lexical_matching_score(
    output_1["lexical_weights"][0], output_2["lexical_weights"][0])
lexical_self = model.compute_lexical_matching_score(
    output_1["lexical_weights"][0], output_1["lexical_weights"][1])

options["return_colbert_vecs"] = True
output_1 = model.encode(sentences_1, **options)
output_2 = model.encode(sentences_2, **options)
colbert = [model.colbert_score(output_1["colbert_vecs"][0], output_2["colbert_vecs"][i])
           for i in (0, 1)]

sentence_pairs = [[i, j] for i in sentences_1 for j in sentences_2]
scores = model.compute_score(
    sentence_pairs, max_passage_length=128, weights_for_different_modes=[0.4, 0.2, 0.4])
one = model.compute_score(sentence_pairs[0])
"""


def test_the_reference_examples_with_only_the_import_changed(tmp_path) -> None:
    path = str(make_checkpoint(tmp_path, positions=8194))
    theirs, ours = {}, {}
    exec(README_EXAMPLES.format(package="FlagEmbedding", path=path, fp16=False), theirs)
    exec(README_EXAMPLES.format(package="m3fast", path=path, fp16=False), ours)
    np.testing.assert_allclose(ours["similarity"], theirs["similarity"], atol=1e-5)
    assert [list(row) for row in ours["tokens"]] == [list(row) for row in theirs["tokens"]]
    for name in ("lexical_scores", "lexical_self"):
        assert float(ours[name]) == pytest.approx(float(theirs[name]), abs=1e-5)
    assert list(map(float, ours["colbert"])) == pytest.approx(
        list(map(float, theirs["colbert"])), abs=1e-5
    )
    for key in ("dense", "sparse"):
        assert ours["scores"][key] == pytest.approx(theirs["scores"][key], abs=1e-5)
    assert {k: pytest.approx(v, abs=1e-4) for k, v in theirs["one"].items()} == ours["one"]
    # The example says use_fp16=True; on a CPU that changes nothing here.
    exec(README_EXAMPLES.format(package="m3fast", path=path, fp16=True), half := {})
    np.testing.assert_array_equal(half["similarity"], ours["similarity"])
