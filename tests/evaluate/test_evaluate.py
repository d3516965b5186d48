"""The whole library part: figures from the engine's own embeddings, recomputed in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import make_checkpoint

from m3fast import Engine, InputError
from m3fast.evaluate import (
    Dataset,
    Evaluation,
    builtin,
    cross,
    evaluate,
    hybrid_weights,
    n_texts,
)
from m3fast.evaluate import run as module

pytest.importorskip("ir_measures")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    path = make_checkpoint(tmp_path_factory.mktemp("model"), positions=66)
    return Engine.from_pretrained(path, dtype="float32")


def expected_scores(engine: Engine, data: Dataset, weights: dict[str, Any]) -> dict[str, Any]:
    q, d = (engine.encode(texts.texts) for texts in (data.queries, data.documents))
    assert q.dense is not None and d.dense is not None
    assert q.sparse is not None and d.sparse is not None
    assert q.colbert is not None and d.colbert is not None
    wide = [x.sparse.to_scipy().astype(np.float64) for x in (q, d)]  # pyright: ignore
    late = [
        [(a.astype(np.float64) @ b.astype(np.float64).T).max(1).mean() for b in d.colbert]
        for a in q.colbert
    ]
    scores = {
        "dense": q.dense.astype(np.float64) @ d.dense.astype(np.float64).T,
        "sparse": (wide[0] @ wide[1].T).toarray(),
        "colbert": np.array(late),
    }
    for mode, triple in weights.items():
        parts = zip(triple, ("dense", "sparse", "colbert"), strict=True)
        scores[mode] = sum(w * scores[name] for w, name in parts)
    return scores


def share_on_top(scores: Any, sparse: bool) -> float:
    """R@1 where query i is answered by document i."""
    best = scores.argmax(1)
    right = best == np.arange(len(scores))
    return float((right & (scores.max(1) > 0) if sparse else right).mean())


@pytest.mark.parametrize("weights", ["miracl", "mldr", "equal", (0.1, 5.0, 2.0)])
def test_figures(engine: Engine, weights: Any) -> None:
    data = [d for d in builtin() if d.name in ("de", "en")]
    found = evaluate(engine, data, weights=weights)
    assert [result.name for result in found.results] == ["de", "en"]
    for result, source in zip(found.results, data, strict=True):
        scores = expected_scores(engine, source, hybrid_weights(weights))
        assert list(result.values) == ["dense", "sparse", "colbert", "dense+sparse", "all"]
        for mode, values in result.values.items():
            wanted = share_on_top(scores[mode], mode == "sparse")
            assert values["R@1"] == pytest.approx(wanted), mode
            ranks = [
                1 + int((row > row[i]).sum()) if mode != "sparse" or row[i] > 0 else 0
                for i, row in enumerate(scores[mode])
            ]
            mrr = np.mean([1 / rank if 1 <= rank <= 10 else 0.0 for rank in ranks])
            assert values["MRR@10"] == pytest.approx(mrr), mode
            ndcg = np.mean([1 / np.log2(r + 1) if 1 <= r <= 10 else 0.0 for r in ranks])
            assert values["nDCG@10"] == pytest.approx(ndcg), mode
            assert values["Recall@100"] == pytest.approx(np.mean([r > 0 for r in ranks])), mode
    for mode in found.modes:
        both = [result.values[mode]["MRR@10"] for result in found.results]
        assert found.mean[mode]["MRR@10"] == pytest.approx(sum(both) / 2)


def test_modes_and_weights_matter(engine: Engine) -> None:
    data = builtin()[:1]
    values = evaluate(engine, data).results[0].values
    assert len({str(v) for v in values.values()}) >= 4
    only_sparse = evaluate(engine, data, weights=(0.0, 1.0, 0.0)).results[0].values
    # As sparse, but with the documents that share nothing at the end.
    assert only_sparse["all"] == only_sparse["dense+sparse"] != values["all"]
    only_dense = evaluate(engine, data, weights=(1.0, 0.0, 0.0)).results[0].values
    assert only_dense["all"] == only_dense["dense+sparse"] == values["dense"]


def test_cross_encodes_documents_once(engine: Engine) -> None:
    every = [d for d in builtin() if d.name in ("de", "en", "es")]
    crossed = cross(every, "en")
    counts: list[int] = []
    found = evaluate(engine, crossed, progress=counts.append)
    n = len(every[0].documents)
    assert sum(counts) == n_texts(crossed) == 3 * n
    assert n_texts(every) == 6 * n
    assert [result.name for result in found.results] == ["de→en", "es→en"]
    for result, data in zip(found.results, crossed, strict=True):
        assert evaluate(engine, [data]).results == (result,)
        scores = expected_scores(engine, data, found.weights)
        assert result.values["dense"]["R@1"] == share_on_top(scores["dense"], False)


def test_rerank(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    data = builtin()[2:3]
    exact, one = evaluate(engine, data), evaluate(engine, data, rerank=1)
    assert (exact.rerank, one.rerank) == (0, 1)
    for mode in ("colbert", "all"):
        # Of one document each, R@1 can only be dense's.
        assert one.results[0].values[mode]["R@1"] == exact.results[0].values["dense"]["R@1"]
    assert evaluate(engine, data, rerank=24).results == exact.results
    monkeypatch.setattr(module, "EXACT_DOCUMENTS", 23)
    assert evaluate(engine, data).rerank == 200
    assert evaluate(engine, data, rerank=0).rerank == 0


def test_cut_texts_are_counted(engine: Engine) -> None:
    data = [d for d in builtin() if d.name in ("de", "en")]
    short = Engine.from_pretrained(engine.path, dtype="float32", max_length=8)
    cuts = [
        int(short.encode(d.queries.texts).truncated.sum())
        + int(short.encode(d.documents.texts).truncated.sum())
        for d in data
    ]
    assert [result.cut for result in evaluate(short, data).results] == cuts
    assert min(cuts) >= 24


def test_dense_only(tmp_path: Path) -> None:
    plain = Engine.from_pretrained(make_checkpoint(tmp_path, m3_heads=False), dtype="float32")
    found: Evaluation = evaluate(plain, builtin()[:2])
    assert found.modes == ["dense"]
    assert found.rerank == 0
    with pytest.raises(InputError, match="rerank: expected 0 for a model without"):
        evaluate(plain, builtin()[:2], rerank=5)


def test_weights_by_name() -> None:
    assert hybrid_weights("miracl") == {"dense+sparse": (1, 0.3, 0), "all": (1, 0.3, 1)}
    assert hybrid_weights("mkqa") == hybrid_weights("miracl")
    assert hybrid_weights("mldr") == {"dense+sparse": (0.2, 0.8, 0), "all": (0.15, 0.5, 0.35)}
    assert hybrid_weights("equal") == {"dense+sparse": (1, 1, 0), "all": (1, 1, 1)}
    assert hybrid_weights([1, 2, 3]) == {"dense+sparse": (1, 2, 0), "all": (1, 2, 3)}


@pytest.mark.parametrize("weights", ["beir", (1, 2), (1, -1, 1), (1, float("nan"), 1), (0, 0, 1)])
def test_bad_weights(engine: Engine, weights: Any) -> None:
    with pytest.raises(InputError, match="weights: expected"):
        evaluate(engine, builtin(), weights=weights)


def test_bad_arguments(engine: Engine) -> None:
    with pytest.raises(InputError, match="rerank: expected an integer from 0 on, found -1"):
        evaluate(engine, builtin(), rerank=-1)
    with pytest.raises(InputError, match="datasets: expected at least one"):
        evaluate(engine, [])
