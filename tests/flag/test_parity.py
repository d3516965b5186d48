"""Every output against FlagEmbedding 1.4.2 itself, float32 on the CPU."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import FlagEmbedding
import numpy as np
import pytest
import torch
from checkpoints import TEXTS, make_checkpoint

from m3fast import BGEM3FlagModel

SHAPES = {
    "odd": dict(hidden=40, heads=5, ffn=72, seed=1),
    "wide-heads": dict(hidden=128, heads=2, ffn=96, layers=1, colbert_dim=24, seed=2),
    "bin": dict(hidden=32, heads=4, layers=3, safetensors=False, colbert_dim=48, seed=3),
}
PAIRS = [(TEXTS[0], TEXTS[3]), (TEXTS[4], TEXTS[5]), (TEXTS[0], TEXTS[10]), ("", "x")]


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: make_checkpoint(folder / name, **shape) for name, shape in SHAPES.items()}


@pytest.fixture(scope="module", params=list(SHAPES))
def path(request, paths) -> Path:
    return paths[request.param]


def both(path: Path, **kwargs):
    # The reference has to be told what m3fast reads off the file.
    dim = len(torch.load(path / "colbert_linear.pt", weights_only=True)["bias"])
    options = {"use_fp16": False, "devices": "cpu", "colbert_dim": dim, **kwargs}
    return FlagEmbedding.BGEM3FlagModel(str(path), **options), BGEM3FlagModel(str(path), **options)


@pytest.fixture(scope="module")
def models(path):
    return both(path)


def assert_same(theirs, ours) -> None:
    assert list(ours) == list(theirs) == ["dense_vecs", "lexical_weights", "colbert_vecs"]
    for key in theirs:
        assert (ours[key] is None) == (theirs[key] is None), key
    if theirs["dense_vecs"] is not None:
        same_array(theirs["dense_vecs"], ours["dense_vecs"])
    if theirs["lexical_weights"] is not None:
        rows = [theirs["lexical_weights"], ours["lexical_weights"]]
        rows = [[r] if isinstance(r, dict) else r for r in rows]
        assert len(rows[0]) == len(rows[1])
        for a, b in zip(*rows, strict=True):
            same_dict(a, b)
    if theirs["colbert_vecs"] is not None:
        a, b = theirs["colbert_vecs"], ours["colbert_vecs"]
        assert isinstance(a, list) == isinstance(b, list)
        for x, y in zip(a, b, strict=True) if isinstance(a, list) else [(a, b)]:
            same_array(x, y)


def same_array(a, b) -> None:
    assert type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape
    np.testing.assert_allclose(b, a, rtol=0, atol=1e-5)


def same_dict(a, b) -> None:
    assert type(a) is type(b) is defaultdict and b["no such id"] == 0
    b.pop("no such id")
    # A weight within rounding of zero may be positive on one side only.
    keys = [k for k in a if a[k] > 1e-5]
    assert keys == [k for k in b if k in keys]
    assert all(b[k] <= 2e-5 for k in b if k not in a)
    for k in keys:
        assert type(a[k]) is type(b[k])
        assert abs(a[k] - b[k]) <= 1e-5


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("colbert", [True, False])
def test_encode(models, dense, sparse, colbert) -> None:
    if not (dense or sparse or colbert):
        pytest.skip("nothing asked for is an error, tested in test_flag")
    options = dict(return_dense=dense, return_sparse=sparse, return_colbert_vecs=colbert)
    theirs, ours = (m.encode(TEXTS, **options) for m in models)
    assert_same(theirs, ours)


ALL = dict(return_dense=True, return_sparse=True, return_colbert_vecs=True)


@pytest.mark.parametrize("text", TEXTS[:8])
def test_single_string(models, text) -> None:
    theirs, ours = (m.encode(text, **ALL) for m in models)
    assert_same(theirs, ours)


@pytest.mark.parametrize("max_length", [3, 4, 7, 33, 512])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_lengths_and_batches(models, max_length, batch_size) -> None:
    options = dict(max_length=max_length, batch_size=batch_size, **ALL)
    assert_same(*(m.encode(tuple(TEXTS), **options) for m in models))


@pytest.mark.parametrize("seed", range(3))
def test_random_texts(models, seed) -> None:
    random = np.random.default_rng(seed)
    words = " ".join(TEXTS).split()
    texts = [" ".join(random.choice(words, n)) for n in random.integers(1, 90, 24)]
    assert_same(*(m.encode(texts, **ALL) for m in models))


@pytest.mark.slow
def test_8192_tokens(tmp_path) -> None:
    # The reference pads all of a batch to the longest, and computes its first batch twice.
    path = make_checkpoint(tmp_path, hidden=16, heads=1, layers=1, ffn=16, positions=8194)
    texts = [" ".join(TEXTS * 60), " ".join(TEXTS[:5] * 9)]
    found = [m.encode(texts, max_length=8192, **ALL) for m in both(path)]
    assert len(found[1]["colbert_vecs"][0]) == 8191
    assert_same(*found)


def test_queries_and_corpus(paths) -> None:
    models = both(
        paths["odd"],
        query_instruction_for_retrieval="Find:",
        query_instruction_format="{}\\n{}",
        passage_instruction_for_retrieval="Passage:",
        passage_instruction_format="{} {}",
        query_max_length=12,
        passage_max_length=20,
        return_sparse=True,
        return_colbert_vecs=True,
    )
    assert_same(*(m.encode_queries(TEXTS) for m in models))
    assert_same(*(m.encode_corpus(TEXTS) for m in models))
    assert_same(*(m.encode_corpus(TEXTS[10]) for m in models))
    assert_same(*(m.encode(TEXTS) for m in models))


@pytest.mark.parametrize(
    ("shape", "normalize", "dim", "pooling"),
    [
        ("odd", False, None, "cls"),
        ("wide-heads", True, 8, "mean"),
        ("bin", False, 8, "last_token"),
        ("bin", True, None, "mean"),
    ],
)
def test_vectors(paths, shape, normalize, dim, pooling) -> None:
    options = dict(normalize_embeddings=normalize, truncate_dim=dim, pooling_method=pooling)
    models = both(paths[shape], **options)
    assert_same(*(m.encode(TEXTS, **ALL) for m in models))


@pytest.mark.parametrize("weights", [None, [0.4, 0.2, 0.4], [1, 0, 0]])
def test_compute_score(models, weights) -> None:
    # One pair at a time: with padding the reference lets zero vectors into the maximum.
    for pair in PAIRS:
        theirs, ours = (
            m.compute_score(pair, weights_for_different_modes=weights, max_passage_length=64)
            for m in models
        )
        same_scores(theirs, ours)
        options = dict(weights_for_different_modes=weights)
        theirs, ours = (m.compute_score([pair], **options) for m in models)
        same_scores(theirs, ours)


def same_scores(theirs, ours) -> None:
    assert list(theirs) == list(ours)
    for key in theirs:
        assert type(theirs[key]) is type(ours[key])
        np.testing.assert_allclose(ours[key], theirs[key], rtol=0, atol=1e-4)


def test_compute_score_uses_real_tokens_only(models) -> None:
    """In a padded batch the reference's zero rows take part in MaxSim; here they do not."""
    theirs, ours = models
    together = ours.compute_score(PAIRS)
    for i, pair in enumerate(PAIRS):
        alone = theirs.compute_score(pair)
        for key in together:
            assert together[key][i] == pytest.approx(alone[key], abs=1e-4)
    padded = theirs.compute_score(PAIRS)
    for key in ("dense", "sparse", "sparse+dense"):
        np.testing.assert_allclose(together[key], padded[key], atol=1e-4)
    assert theirs.compute_score([]) == ours.compute_score([]) == []


def test_score_functions(models) -> None:
    theirs, ours = models
    found = theirs.encode(TEXTS, **ALL)
    vectors, weights = found["colbert_vecs"], found["lexical_weights"]
    for q, p in [(0, 3), (3, 0), (1, 10)]:
        a, b = (m.colbert_score(vectors[q], vectors[p]) for m in models)
        assert type(a) is type(b) and a.shape == b.shape
        assert float(a) == pytest.approx(float(b), abs=1e-5)
        a, b = (m.compute_lexical_matching_score(weights[q], weights[p]) for m in models)
        assert float(a) == pytest.approx(float(b), abs=1e-5)
    a, b = (m.compute_lexical_matching_score(weights[:4], weights) for m in models)
    same_array(a, b)
    for rows in (weights, weights[:1], weights[0]):
        assert theirs.convert_id_to_token(rows) == ours.convert_id_to_token(rows)


def test_attributes(models) -> None:
    theirs, ours = models
    assert len(theirs.tokenizer) == len(ours.tokenizer)
    assert theirs.model.model.config.hidden_size == ours.model.model.config.hidden_size
    assert theirs.model.colbert_linear.out_features == ours.model.colbert_linear.out_features
    for name in ("target_devices", "batch_size", "normalize_embeddings", "query_max_length"):
        assert getattr(theirs, name) == getattr(ours, name)
    ids = theirs.tokenizer(TEXTS)["input_ids"]
    assert ours.tokenizer(TEXTS)["input_ids"] == ids


def test_lexical_weights_under_json(models) -> None:
    """json.dumps does with them what it does with the reference's: an error, or the rows."""

    def outcome(model: Any, default: Any) -> Any:
        weights = model.encode(TEXTS[:3], return_sparse=True)["lexical_weights"]
        try:
            return [list(row) for row in json.loads(json.dumps(weights, default=default))]
        except TypeError as error:
            return str(error)

    theirs, ours = models
    for default in (None, float):
        assert outcome(ours, default) == outcome(theirs, default)
