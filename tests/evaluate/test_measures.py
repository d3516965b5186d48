"""Measures of tiny rankings, worked out by hand."""

from __future__ import annotations

import math

import pytest

from m3fast import InputError
from m3fast.evaluate import Dataset, Texts
from m3fast.evaluate import measures as module
from m3fast.evaluate.measures import MEASURES, measure

pytest.importorskip("ir_measures")


def dataset(qrels: dict[str, dict[str, int]], n_documents: int = 300) -> Dataset:
    documents = tuple(f"d{i}" for i in range(n_documents))
    queries = Texts(tuple(qrels), tuple("?" for _ in qrels))
    return Dataset("x", queries, Texts(documents, documents), qrels)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([7, 1], (1.0, 1.0, 1.0, 1.0)),
        ([1, 7], (1 / math.log2(3), 1.0, 0.5, 0.0)),
        ([*range(10, 19), 7], (1 / math.log2(11), 1.0, 0.1, 0.0)),
        ([*range(10, 20), 7], (0.0, 1.0, 0.0, 0.0)),  # rank 11: beyond ten
        ([*range(100, 199), 7], (0.0, 1.0, 0.0, 0.0)),  # rank 100
        ([*range(100, 200), 7], (0.0, 0.0, 0.0, 0.0)),  # rank 101
        ([1, 2], (0.0, 0.0, 0.0, 0.0)),
        ([], (0.0, 0.0, 0.0, 0.0)),
    ],
)
def test_one_relevant(found: list[int], expected: tuple[float, ...]) -> None:
    values = measure(dataset({"q": {"d7": 1}}), [found])
    assert tuple(values) == ("nDCG@10", "Recall@100", "MRR@10", "R@1") == tuple(MEASURES)
    assert tuple(values.values()) == pytest.approx(expected)


def test_graded_relevance_and_unfindable_documents() -> None:
    qrels = {"d1": 2, "d2": 1, "d3": 0, "elsewhere": 1}
    values = measure(dataset({"q": qrels}), [[3, 2, 1]])
    ideal = 2 + 1 / math.log2(3) + 1 / math.log2(4)
    assert values["nDCG@10"] == pytest.approx((1 / math.log2(3) + 2 / math.log2(4)) / ideal)
    assert values["Recall@100"] == pytest.approx(2 / 3)
    assert values["MRR@10"] == 0.5
    assert values["R@1"] == 0.0  # d3 is judged, and not relevant


def test_mean_counts_every_query() -> None:
    data = dataset({"a": {"d0": 1}, "b": {"d0": 1}, "c": {"d0": 1}, "none": {"d0": 0}})
    values = measure(data, [[0], [1, 0], [], [0]])
    assert values["R@1"] == pytest.approx(1 / 4)
    assert values["MRR@10"] == pytest.approx((1 + 1 / 2) / 4)


@pytest.mark.parametrize("found", [[1, 2, 0], [2, 1, 0], [0, 2, 1]])
def test_order_given_is_order_measured(found: list[int]) -> None:
    """Neither of the library's ways to break ties, by rising or falling id, plays a part."""
    values = measure(dataset({"q": {"d0": 1}}), [found])
    assert values["MRR@10"] == pytest.approx(1 / (found.index(0) + 1))
    assert values["R@1"] == float(found[0] == 0)


def test_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install 'm3fast\[eval\]'"):
        module.need_library()
