"""Other people's code with our class in place of the reference's: pymilvus, README examples."""

from __future__ import annotations

import numpy as np
import pytest
from checkpoints import TEXTS, make_checkpoint

from m3fast import BGEM3FlagModel


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
