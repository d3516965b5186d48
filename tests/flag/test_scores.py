"""The drop-in's scores: of pairs, in chunks, with weights, of token vectors and lexical weights."""

from __future__ import annotations

import numpy as np
import pytest
from checkpoints import TEXTS

from m3fast import InputError

ALL = dict(return_dense=True, return_sparse=True, return_colbert_vecs=True)
PAIRS = [(TEXTS[0], TEXTS[3]), (TEXTS[4], TEXTS[5]), (TEXTS[0], TEXTS[10])]


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
