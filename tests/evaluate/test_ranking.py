"""Rankings against float64 scores of the same embeddings, ordered by a plain sort."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from m3fast.evaluate import ranking
from m3fast.evaluate.ranking import Top, rank
from m3fast.types import Embeddings, SparseRows, TokenVectors

WEIGHTS = {"dense+sparse": (0.2, 0.8, 0.0), "all": (0.15, 0.5, 0.35)}


def random_embeddings(n: int, seed: int, *, dim: int = 6, vocab: int = 40) -> Embeddings:
    rng = np.random.default_rng(seed)

    def unit(rows: int) -> Any:
        x = rng.standard_normal((rows, dim)).astype(np.float32)
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    ids = [rng.choice(vocab, rng.integers(1, 4), replace=False).astype(np.int32) for _ in range(n)]
    indptr = np.concatenate([[0], np.cumsum([len(i) for i in ids])]).astype(np.int64)
    sparse = SparseRows(
        indptr, np.concatenate(ids), rng.random(indptr[-1], np.float32) + 0.1, vocab
    )
    lengths = rng.integers(1, 5, n)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = TokenVectors(unit(int(offsets[-1])), offsets)
    zeros = np.zeros(n, np.bool_)
    return Embeddings(unit(n), sparse, tokens, lengths.astype(np.int32) + 1, zeros)


def float64_scores(queries: Embeddings, documents: Embeddings) -> dict[str, Any]:
    assert queries.dense is not None and documents.dense is not None
    assert queries.sparse is not None and documents.sparse is not None
    assert queries.colbert is not None and documents.colbert is not None
    q, d = queries.sparse.to_dicts(), documents.sparse.to_dicts()
    scores = {
        "dense": queries.dense.astype(np.float64) @ documents.dense.astype(np.float64).T,
        "sparse": np.array([[sum(w * b.get(i, 0.0) for i, w in a.items()) for b in d] for a in q]),
        "colbert": np.array(
            [
                [(a.astype(np.float64) @ b.astype(np.float64).T).max(1).mean() for b in
                 documents.colbert]
                for a in queries.colbert
            ]
        ),
    }
    for mode, weights in WEIGHTS.items():
        parts = zip(weights, ("dense", "sparse", "colbert"), strict=True)
        scores[mode] = sum(w * scores[name] for w, name in parts)
    return scores


def ordered(scores: Any, among: Any = None) -> list[list[int]]:
    rows = [sorted(range(len(row)), key=lambda i: (-row[i], i)) for row in scores]
    if among is None:
        return rows
    return [[i for i in row if i in some] for row, some in zip(rows, among, strict=True)]


def split(documents: Embeddings, size: int) -> list[Embeddings]:
    return [documents[a : a + size] for a in range(0, len(documents), size)]


@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize("block", [1, 1 << 22])
def test_all_modes(size: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "BLOCK_SCORES", block)
    queries, documents = random_embeddings(9, 0), random_embeddings(64, 1)
    expected = float64_scores(queries, documents)
    found = rank(queries, split(documents, size), WEIGHTS, 10)
    assert list(found) == ["dense", "sparse", "colbert", "dense+sparse", "all"]
    for mode, rankings in found.items():
        wanted = [row[:10] for row in ordered(expected[mode])]
        if mode == "sparse":
            positive = [set(np.flatnonzero(row > 0)) for row in expected[mode]]
            wanted = [row[:10] for row in ordered(expected[mode], positive)]
            assert min(map(len, wanted)) < 10  # some documents share no token
        assert rankings == wanted, mode
    assert len({str(rankings) for rankings in found.values()}) == 5


@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize("n", [1, 5, 20, 100])
def test_rerank(size: int, n: int) -> None:
    queries, documents = random_embeddings(9, 0), random_embeddings(64, 1)
    expected = float64_scores(queries, documents)
    best = [set(row[:n]) for row in ordered(expected["dense"])]
    found = rank(queries, split(documents, size), WEIGHTS, 10, rerank=n)
    exact = rank(queries, split(documents, size), WEIGHTS, 10)
    for mode in ("dense", "sparse", "dense+sparse"):
        assert found[mode] == exact[mode], mode
    for mode in ("colbert", "all"):
        assert found[mode] == [row[:10] for row in ordered(expected[mode], best)], mode
        assert (found[mode] == exact[mode]) == (n >= 64)


def test_rerank_is_for_hybrids_with_maxsim() -> None:
    """A weight of 0 for colbert: nothing there waits for dense."""
    queries, documents = random_embeddings(9, 0), random_embeddings(64, 1)
    weights = {"all": (1.0, 0.5, 0.0)}
    assert (
        rank(queries, [documents], weights, 10, rerank=3)["all"]
        == rank(queries, [documents], weights, 10)["all"]
    )


def test_ties_keep_the_order_of_the_documents() -> None:
    queries, one = random_embeddings(3, 0), random_embeddings(1, 1)
    for rerank in (0, 5, 9):
        found = rank(queries, [one] * 8, WEIGHTS, 4, rerank=rerank)
        for mode in ("dense", "colbert", "dense+sparse", "all"):
            assert found[mode] == [[0, 1, 2, 3]] * 3, mode


def test_ties_among_many() -> None:
    """numpy sorts up to 16 numbers stably by any of its ways, so more of them."""
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, (3, 500)).astype(np.float32)
    top = Top(3, 100)
    for start in range(0, 500, 70):
        top.update(slice(0, 3), scores[:, start : start + 70], start)
    assert top.rankings() == [row[:100] for row in ordered(scores)]


def test_dense_only() -> None:
    from dataclasses import replace

    queries, documents = random_embeddings(3, 0), random_embeddings(8, 1)
    expected = [row[:4] for row in ordered(float64_scores(queries, documents)["dense"])]
    bare = [replace(x, sparse=None, colbert=None) for x in (queries, documents)]
    assert rank(bare[0], [bare[1]], WEIGHTS, 4) == {"dense": expected}


def test_top_says_where_places_come_from() -> None:
    top = Top(1, 2)
    first = np.array([[0.5, 0.1, 0.7]], np.float32)
    assert top.update(slice(0, 1), first, 0).tolist() == [[4, 2]]
    assert top.rows.tolist() == [[2, 0]]
    second = np.array([[0.6, -np.inf]], np.float32)
    assert top.update(slice(0, 1), second, 3).tolist() == [[0, 2]]
    assert top.rows.tolist() == [[2, 3]]
    nothing = Top(1, 3)
    nothing.update(slice(0, 1), np.array([[-np.inf, 0.0]], np.float32), 0)
    assert nothing.rankings() == [[1]]
