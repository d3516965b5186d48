"""What one engine loses against another: recomputed with numpy from either's own embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import make_checkpoint, small_folder

from m3fast import Embeddings, Engine, InputError
from m3fast.engine import engine as engine_module
from m3fast.evaluate import (
    Dataset,
    Texts,
    builtin,
    compare,
    cross,
    evaluate,
    n_texts,
    ranking,
)
from m3fast.evaluate.nearness import Late, Sample, cosines
from m3fast.types import TokenVectors

pytest.importorskip("ir_measures")
DATA = [data for data in builtin() if data.name in ("de", "en")]


@pytest.fixture(scope="module")
def int8() -> Engine:
    return Engine.from_pretrained(small_folder(), device="cpu", dtype="int8")


@pytest.fixture(scope="module")
def float32() -> Engine:
    return Engine.from_pretrained(small_folder(), device="cpu", dtype="float32")


def wide(found: Embeddings) -> tuple[Any, Any, list[Any]]:
    """float64: dense [N, H], lexical weights [N, V], vectors of each text."""
    assert found.dense is not None and found.sparse is not None and found.colbert is not None
    late = [vectors.astype(np.float64) for vectors in found.colbert]
    return found.dense.astype(np.float64), found.sparse.to_scipy().toarray().astype(float), late


def of_cosines(a: Any, b: Any) -> dict[str, float]:
    found = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return {"p1": np.quantile(found, 0.01), "median": np.median(found), "min": found.min()}


def best_terms(row: Any) -> set[int]:
    return {i for i in np.argsort(-row, kind="stable")[:10].tolist() if row[i] > 0}


def of_terms(a: Any, b: Any) -> dict[str, float]:
    pairs = [(best_terms(x), best_terms(y)) for x, y in zip(a, b, strict=True)]
    shares = [len(x & y) / max(len(x), len(y)) for x, y in pairs]
    return {"best": np.mean(shares), "error": np.sqrt(((a - b) ** 2).sum() / (b**2).sum())}


def best_rows(scores: Any, n: int) -> list[list[int]]:
    return [np.argsort(-row, kind="stable")[:n].tolist() for row in scores]


def test_figures(int8: Engine, float32: Engine) -> None:
    found = compare(int8, float32, DATA)
    assert found.found == evaluate(int8, DATA)
    assert found.against == evaluate(float32, DATA)

    late: list[float] = []
    sides: dict[str, list[Any]] = {"queries": [], "documents": []}
    for data, agreement in zip(DATA, found.agreement, strict=True):
        ours, theirs = (
            [wide(engine.encode(texts.texts)) for texts in (data.queries, data.documents)]
            for engine in (int8, float32)
        )
        sides["queries"].append((ours[0], theirs[0]))
        sides["documents"].append((ours[1], theirs[1]))

        def maxsim(side: Any, query: int, document: int) -> float:
            return (side[0][2][query] @ side[1][2][document].T).max(1).mean()

        ranked = best_rows(theirs[0][0] @ theirs[1][0].T, 10)
        mine = best_rows(ours[0][0] @ ours[1][0].T, 10)
        late += [
            abs(maxsim(ours, q, d) - maxsim(theirs, q, d))
            for q, rows in enumerate(ranked)
            for d in rows
        ]
        shared = [len(set(a) & set(b)) / 10 for a, b in zip(mine, ranked, strict=True)]
        first = [a[0] == b[0] for a, b in zip(mine, ranked, strict=True)]
        assert agreement["dense"]["best"] == pytest.approx(np.mean(shared))
        assert agreement["dense"]["first"] == pytest.approx(np.mean(first))
        assert list(agreement) == ["dense", "sparse", "colbert", "dense+sparse", "all"]
        assert found.mean_agreement["dense"]["best"] < 1

    near = found.nearness
    for kind, pairs in sides.items():
        a, b = zip(*pairs, strict=True)
        stacked = [[np.concatenate([side[i] for side in each]) for each in (a, b)] for i in (0, 1)]
        assert near["dense"][kind] == pytest.approx(of_cosines(*stacked[0]), abs=1e-6)
        assert near["sparse"][kind] == pytest.approx(of_terms(*stacked[1]), rel=1e-5)
        vectors = [np.concatenate([v for side in each for v in side[2]]) for each in (a, b)]
        assert near["colbert"][kind] == pytest.approx(of_cosines(*vectors), abs=1e-6)
    wanted = {"mean": np.mean(late), "max": max(late), "pairs": len(late)}
    assert near["colbert"]["maxsim"] == pytest.approx(wanted, abs=1e-6)
    assert near["dense"]["queries"]["min"] < 0.9999
    assert 1e-4 < near["sparse"]["documents"]["error"] < 0.1


def test_windows_and_shared_documents(
    int8: Engine, float32: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    crossed = cross(DATA, "en")
    counts: list[int] = []
    whole = compare(int8, float32, crossed, rerank=12, progress=counts.append)
    assert sum(counts) == 2 * n_texts(crossed)
    monkeypatch.setattr(engine_module, "WINDOW_TEXTS", 7)
    parts = compare(int8, float32, crossed, rerank=12)
    assert parts.against.rerank == 12
    # Other batches round otherwise, which may move one of a text's ten terms, 0.002 of 48 texts.
    for head, kinds in whole.nearness.items():
        for kind, figures in kinds.items():
            assert parts.nearness[head][kind] == pytest.approx(figures, abs=5e-3), (head, kind)
    assert parts.nearness["colbert"]["maxsim"]["pairs"] == 240


def test_an_engine_loses_nothing_against_itself(float32: Engine) -> None:
    found = compare(float32, float32, DATA[:1])
    assert found.found == found.against
    assert all(v == {"best": 1, "first": 1} for v in found.mean_agreement.values())
    for head, kinds in found.nearness.items():
        for kind in ("documents", "queries"):
            nothing = {"best": 1, "error": 0} if head == "sparse" else of_ones()
            assert kinds[kind] == pytest.approx(nothing, abs=1e-12)
    assert found.nearness["colbert"]["maxsim"] == {"mean": 0, "max": 0, "pairs": 240}


def of_ones() -> dict[str, float]:
    return {"p1": 1, "median": 1, "min": 1}


def test_a_head_that_is_missing_is_left_out(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, m3_heads=False)
    ours, theirs = (Engine.from_pretrained(path, device="cpu", dtype=d) for d in ("int8", "fp32"))
    found = compare(ours, theirs, DATA[:1])
    assert list(found.nearness) == list(found.mean_agreement) == ["dense"]


def test_errors(float32: Engine, tmp_path: Path) -> None:
    few = Texts(DATA[0].documents.ids[:10], DATA[0].documents.texts[:10])
    small = Dataset("small", DATA[0].queries, few, DATA[0].qrels)
    with pytest.raises(InputError, match=r"small: expected more than 10 documents, .* found 10"):
        compare(float32, float32, [small])
    plain = Engine.from_pretrained(make_checkpoint(tmp_path, m3_heads=False), device="cpu")
    with pytest.raises(InputError, match=r"against: expected heads \['dense', .*'dense'\]$"):
        compare(float32, plain, DATA)
    short = Engine.from_pretrained(small_folder(), device="cpu", dtype="float32", max_length=9)
    with pytest.raises(InputError, match="against: expected max_length 8192, found 9"):
        compare(float32, short, DATA)
    with pytest.raises(InputError, match="rerank: expected an integer"):
        compare(float32, float32, DATA, rerank=-1)


def made(n: int, seed: int) -> Embeddings:
    """Dense vectors and vectors of one to four tokens."""
    rng = np.random.default_rng(seed)
    offsets = np.cumsum([0, *rng.integers(1, 5, n)])
    late = TokenVectors(rng.standard_normal((offsets[-1], 6)).astype(np.float32), offsets)
    dense = rng.standard_normal((n, 6)).astype(np.float32)
    lengths = np.diff(offsets).astype(np.int32)
    return Embeddings(dense, None, late, lengths, np.zeros(n, np.bool_))


@pytest.mark.parametrize("block", [1 << 22, 12])
def test_maxsim_over_windows(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "BLOCK_SCORES", block)
    queries, documents = (made(5, 0), made(5, 1)), (made(40, 2), made(40, 3))
    late = Late(*queries)
    for start in range(0, 40, 7):
        late.update(*(each.view(start, min(40, start + 7)) for each in documents))

    def maxsim(side: int, q: int, d: int) -> float:
        ours, theirs = queries[side].colbert, documents[side].colbert
        assert ours is not None and theirs is not None
        return float((ours[q].astype(np.float64) @ theirs[d].astype(np.float64).T).max(1).mean())

    assert queries[1].dense is not None and documents[1].dense is not None
    ranked = best_rows(queries[1].dense @ documents[1].dense.T, 10)
    wanted = [abs(maxsim(0, q, d) - maxsim(1, q, d)) for q, rows in enumerate(ranked) for d in rows]
    assert late.errors() == pytest.approx(wanted, abs=1e-5)


def test_a_sample_keeps_every_nth_number() -> None:
    numbers = np.random.default_rng(0).permutation(10_000) / 10_000
    sample, whole = Sample(room=1000), Sample()
    for start in range(0, 10_000, 37):
        for each in (sample, whole):
            each.add(numbers[start : start + 37])
    assert 400 < len(sample.values) <= 1000
    step = 10_000 / len(sample.values)
    assert np.array_equal(sample.values, numbers[:: round(step)].astype(np.float32))
    assert np.array_equal(whole.values, numbers.astype(np.float32))
    assert sample.figures()["min"] == 0
    assert sample.figures()["median"] == pytest.approx(0.5, abs=0.05)


def test_cosines() -> None:
    a = np.array([[3, 4], [1, 0], [0, 0], [0, 0]], np.float32)
    b = np.array([[6, 8], [0, 2], [0, 0], [1, 0]], np.float32)
    assert cosines(a, b).tolist() == [1, 0, 1, 0]
