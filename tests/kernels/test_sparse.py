from itertools import pairwise

import numpy as np
import pytest
import torch

from m3fast.kernels.reference import lexical_scores_ref, sparse_rows_ref
from m3fast.kernels.sparse import fill_dicts, lexical_scores, sparse_rows

DROPPED = [0, 1, 2, 3]


def dicts(rows):
    indptr, indices, values = rows
    spans = pairwise(indptr)
    return [dict(zip(indices[a:b].tolist(), values[a:b].tolist(), strict=True)) for a, b in spans]


def random_rows(rng, lengths, vocab=60):
    cu = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    ids = rng.integers(0, vocab, cu[-1]).astype(np.int32)
    return sparse_rows(ids, rng.random(cu[-1], np.float32), cu, DROPPED)


@pytest.mark.parametrize("vocab", [8, 60, 250_002])
def test_rows_equal_reference(path, rng, ragged, vocab):
    ids = rng.integers(0, vocab, ragged[-1]).astype(np.int32)
    weights = rng.normal(size=len(ids)).astype(np.float32)
    weights[rng.random(len(ids)) < 0.1] = np.nan
    weights[rng.random(len(ids)) < 0.1] = 0
    indptr, indices, values = sparse_rows(ids, weights, ragged, DROPPED)
    expected = sparse_rows_ref(*(torch.from_numpy(a) for a in (ids, weights, ragged)), DROPPED)
    found = dicts((indptr, indices, values))
    assert [list(row.items()) for row in found] == [list(row.items()) for row in expected]
    assert (indptr.dtype, indices.dtype, values.dtype) == (np.int64, np.int32, np.float32)
    assert len(indices) == len(values) == indptr[-1] == sum(map(len, expected))
    # tensors do as well as arrays
    again = sparse_rows(*(torch.from_numpy(a) for a in (ids, weights, ragged)), DROPPED)
    assert dicts(again) == found


def test_order_is_that_of_the_first_weight_above_zero(path):
    ids = np.array([9, 8, 9, 7, 8, 2], np.int32)
    weights = np.array([-1, 0.5, 0.25, np.nan, 0.75, 3], np.float32)
    rows = sparse_rows(ids, weights, np.array([0, 6], np.int32), [2])
    assert rows[1].tolist() == [8, 9, 7]
    assert rows[2].tolist() == [0.75, 0.25, np.inf]  # a NaN is not left out in silence


def test_results_own_their_memory(path, rng):
    indptr, indices, values = random_rows(rng, [5, 6])
    assert all(a.base is None for a in (indptr, indices, values))


def test_no_tokens(path):
    none = np.empty(0, np.int32)
    for n in (0, 3):
        rows = sparse_rows(none, none.astype(np.float32), np.zeros(n + 1, np.int32), DROPPED)
        assert rows[0].tolist() == [0] * (n + 1)
        assert lexical_scores(rows, rows).shape == (n, n)
    scores = lexical_scores(rows, rows)
    assert not scores.any()


@pytest.mark.parametrize("vocab", [8, 60, 100_000])
def test_scores_equal_reference(path, rng, vocab):
    q = random_rows(rng, [3, 0, 40, 1, 17, 200], vocab)
    d = random_rows(rng, rng.integers(0, 300, 37), vocab)
    expected = lexical_scores_ref(dicts(q), dicts(d)).numpy()
    scores = lexical_scores(q, d)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, rtol=3e-7, atol=1e-7)
    pairs = np.stack([rng.integers(0, 6, 50), rng.integers(0, 37, 50)], 1)
    chosen = lexical_scores(q, d, pairs)
    np.testing.assert_allclose(chosen, expected[pairs[:, 0], pairs[:, 1]], rtol=3e-7, atol=1e-7)
    assert lexical_scores(q, d, pairs[:0]).shape == (0,)


def test_same_bits(path, rng, same_bits):
    q, d = random_rows(rng, [30] * 20), random_rows(rng, [100] * 90)
    same_bits(lambda: torch.from_numpy(lexical_scores(q, d)))
    ids = rng.integers(0, 60, 2000).astype(np.int32)
    weights, cu = rng.random(2000, np.float32), np.arange(0, 2001, 20, dtype=np.int32)
    same_bits(lambda: torch.from_numpy(sparse_rows(ids, weights, cu, DROPPED)[2]))


def test_bad_arguments(path, rng):
    ids, weights = np.zeros(4, np.int32), np.zeros(4, np.float32)
    cu = np.array([0, 4], np.int32)
    with pytest.raises(TypeError, match="ids: expected dtype int32"):
        sparse_rows(ids.astype(np.int64), weights, cu, [])
    with pytest.raises(TypeError, match="weights: expected dtype float32"):
        sparse_rows(ids, weights.astype(np.float64), cu, [])
    with pytest.raises(TypeError, match="weights: expected an array of float32, found torch"):
        sparse_rows(ids, torch.zeros(4, dtype=torch.bfloat16), cu, [])
    with pytest.raises(ValueError, match=r"weights: expected shape \[4\], found \[3\]"):
        sparse_rows(ids, weights[:3], cu, [])
    for bad in ([0, 3], [1, 4], [0, 5, 4]):
        with pytest.raises(ValueError, match="cu_seqlens"):
            sparse_rows(ids, weights, np.array(bad, np.int32), [])
    rows = random_rows(rng, [5, 6])
    with pytest.raises(ValueError, match="queries values"):
        lexical_scores((rows[0], rows[1], rows[2][1:]), rows)
    with pytest.raises(ValueError, match="docs indptr"):
        lexical_scores(rows, (rows[0] + 1, rows[1], rows[2]))
    with pytest.raises(TypeError, match="pairs: expected an array of int64"):
        lexical_scores(rows, rows, [[0, 0]])
    for bad in ([0, 2], [2, 0], [-1, 0]):
        with pytest.raises(ValueError, match=r"pairs: expected queries below 2 .* at 1"):
            lexical_scores(rows, rows, np.array([[0, 0], bad]))
    with pytest.raises(ValueError, match=r"pairs: expected shape \[P, 2\]"):
        lexical_scores(rows, rows, np.zeros((2, 3), np.int64))


def test_fill_dicts(path):
    indptr, indices = np.array([0, 2, 2, 3]), np.array([3, 1, 3], np.int32)
    names, values = ["a", "b", "c", "d"], [1.0, 2.0, 3.0]
    dicts = [{}, {}, {}]
    fill_dicts(dicts, indptr, indices, names, values)
    assert dicts == [{"d": 1.0, "b": 2.0}, {}, {"d": 3.0}]
    assert list(dicts[0]) == ["d", "b"]
    for bad in (
        (dicts[:2], indptr, indices, names, values),
        (dicts, indptr, indices, names, values[:2]),
        (dicts, np.array([0, 2, 1, 3]), indices, names, values),
    ):
        with pytest.raises(ValueError):
            fill_dicts(*bad)
    with pytest.raises((ValueError, IndexError)):
        fill_dicts(dicts, indptr, indices, names[:2], values)
