"""Scores against loops written out, for all pairs and for a list of pairs."""

from __future__ import annotations

import numpy as np
import pytest

from m3fast import Embeddings, InputError, SparseRows, TokenVectors, scoring

WIDTH = 50


@pytest.fixture(params=range(3))
def sides(request) -> tuple[Embeddings, Embeddings]:
    random = np.random.default_rng(request.param)
    return make(random, 4), make(random, 7)


def make(random: np.random.Generator, n: int) -> Embeddings:
    tokens, words = random.integers(1, 20, n), random.integers(0, 20, n)
    indices = [random.permutation(WIDTH)[:k] for k in words]
    return Embeddings(
        random.standard_normal((n, 16), np.float32),
        SparseRows(
            np.concatenate([[0], np.cumsum(words)]),
            np.concatenate(indices).astype(np.int32),
            random.random(words.sum(), np.float32) + 0.01,
            WIDTH,
        ),
        TokenVectors(
            random.standard_normal((tokens.sum(), 16), np.float32),
            np.concatenate([[0], np.cumsum(tokens)]),
        ),
        (tokens + 1).astype(np.int32),
        np.zeros(n, bool),
    )


def looped(mode: str, q: Embeddings, p: Embeddings, i: int, j: int) -> float:
    if mode == "dense":
        return float(q.dense[i].astype(np.float64) @ p.dense[j])
    if mode == "sparse":
        a, b = q.sparse.to_dicts()[i], p.sparse.to_dicts()[j]
        return sum(w * b[k] for k, w in a.items() if k in b)
    return float((q.colbert[i].astype(np.float64) @ p.colbert[j].T).max(1).mean())


def test_all_scores(sides) -> None:
    q, p = sides
    pairs = [(0, 6), (3, 0), (1, 1), (1, 1)]
    grid, some = scoring.all_scores(q, p), scoring.all_scores(q, p, pairs)
    assert list(grid) == list(some) == ["dense", "sparse", "colbert"]
    for mode in grid:
        wanted = [[looped(mode, q, p, i, j) for j in range(7)] for i in range(4)]
        assert grid[mode].dtype == some[mode].dtype == np.float32
        np.testing.assert_allclose(grid[mode], wanted, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(
            some[mode], [wanted[i][j] for i, j in pairs], rtol=1e-5, atol=1e-5
        )


def test_a_mode_that_one_side_lacks_is_left_out(sides) -> None:
    q, p = sides
    q = Embeddings(q.dense, None, None, q.n_tokens, q.truncated)
    assert list(scoring.all_scores(q, p)) == ["dense"]


def test_hybrid(sides) -> None:
    scores = scoring.all_scores(*sides)
    found = scoring.hybrid_scores(scores, (0.2, 0.5, 0.3))
    wanted = 0.2 * scores["dense"] + 0.5 * scores["sparse"] + 0.3 * scores["colbert"]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
    named = scoring.hybrid_scores(scores, "miracl")
    np.testing.assert_allclose(named, scoring.hybrid_scores(scores, (1, 0.3, 1)))
    two = {k: scores[k] for k in ("dense", "sparse")}
    np.testing.assert_allclose(
        scoring.hybrid_scores(two, (1, 0.5, 9)), (scores["dense"] + 0.5 * scores["sparse"]) / 1.5,
        rtol=1e-5, atol=1e-6,
    )  # fmt: skip


def test_bad_input(sides) -> None:
    q, p = sides
    with pytest.raises(InputError, match=r"passages: .*16"):
        scoring.dense_scores(q.dense, p.dense[:, :5])
    for pairs in ([(4, 0)], [(0, 7)], [(-1, 0)]):
        for score in (
            lambda pairs: scoring.dense_scores(q.dense, p.dense, pairs),
            lambda pairs: scoring.lexical_scores(q.sparse, p.sparse, pairs),
            lambda pairs: scoring.colbert_scores(q.colbert, p.colbert, pairs),
        ):
            with pytest.raises(InputError, match="pairs"):
                score(pairs)
    scores = scoring.all_scores(q, p)
    for weights in ((1, 2), "unknown", (0, 0, 0)):
        with pytest.raises(InputError, match="weights"):
            scoring.hybrid_scores(scores, weights)
    with pytest.raises(InputError, match="scores"):
        scoring.hybrid_scores({"title": scores["dense"]})
