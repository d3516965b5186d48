"""The demo's texts, their rankings, and how good these are."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from m3fast import scoring

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from m3fast.types import Embeddings

CORPUS = Path(__file__).parents[1] / "data" / "demo.json"
# Mode -> column title, in the order of the tables.
TITLES = {"dense": "dense", "sparse": "sparse", "colbert": "multi-vector", "hybrid": "hybrid"}
HYBRID_WEIGHTS = "miracl"


@dataclass(frozen=True, slots=True)
class Passage:
    """A text to be found."""

    id: str
    lang: str
    text: str


@dataclass(frozen=True, slots=True)
class Query:
    """A question, and the row numbers of the passages that answer it."""

    lang: str
    text: str
    relevant: frozenset[int]


@dataclass(frozen=True, slots=True)
class Corpus:
    """Passages and queries about them."""

    passages: tuple[Passage, ...]
    queries: tuple[Query, ...]

    @property
    def texts(self) -> list[str]:
        """All passages, then all queries."""
        return [p.text for p in self.passages] + [q.text for q in self.queries]

    def crosses(self, query: Query) -> bool:
        """Whether every answer stands in another language than the query."""
        return all(self.passages[i].lang != query.lang for i in query.relevant)


@dataclass(frozen=True, slots=True)
class Quality:
    """Recall at rank 1, and mean reciprocal rank of the best-placed answer."""

    recall_at_1: float
    mrr: float


def load_corpus(file: Path = CORPUS) -> Corpus:
    """Read `{"passages": [{id, lang, text}], "queries": [{lang, text, relevant: [id]}]}`."""
    raw = json.loads(file.read_text(encoding="utf-8"))
    passages = tuple(Passage(**row) for row in raw["passages"])
    row_of = {p.id: i for i, p in enumerate(passages)}
    queries = tuple(
        Query(q["lang"], q["text"], frozenset(row_of[i] for i in q["relevant"]))
        for q in raw["queries"]
    )
    return Corpus(passages, queries)


def score(queries: Embeddings, passages: Embeddings) -> dict[str, NDArray[np.float32]]:
    """Scores [n, m] of each mode both sides have; hybrid too where there is more than one."""
    scores = scoring.all_scores(queries, passages)
    if len(scores) > 1:
        scores["hybrid"] = scoring.hybrid_scores(dict(scores), HYBRID_WEIGHTS)
    return scores


def ranking(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Passage rows by falling score, [n, m]; equal scores stay in corpus order."""
    return np.argsort(-scores, axis=1, kind="stable")


def first_hits(
    mode: str, scores: NDArray[np.float32], queries: tuple[Query, ...]
) -> list[int | None]:
    """Per query, the rank (from 1) of the best-placed answer; None where nothing found it.

    A lexical score of 0 is a passage that shares no token with the query: not found, whatever
    place the sorting gave it.
    """
    hits: list[int | None] = []
    for n, (row, query) in enumerate(zip(ranking(scores), queries, strict=True)):
        found = [i for i in row.tolist() if mode != "sparse" or scores[n, i] > 0]
        hits.append(next((rank for rank, i in enumerate(found, 1) if i in query.relevant), None))
    return hits


def quality(hits: list[int | None]) -> Quality:
    """R@1 and MRR of first-hit ranks; an answer not found counts 0."""
    reciprocal = [0.0 if hit is None else 1 / hit for hit in hits]
    return Quality(hits.count(1) / len(hits), sum(reciprocal) / len(hits))
