"""Rankings of every mode from one pass over the documents, in memory that does not grow.

Documents come window by window. A window is scored for all queries, and of each ranking only the
best are kept. Equal scores stay in the order of the documents.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from m3fast import scoring

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from m3fast.types import Embeddings

    Scores = NDArray[np.float32]
    Triple = tuple[float, float, float]

BASIC = ("dense", "sparse", "colbert")
# Scores of one mode held at a time: 16 MiB.
BLOCK_SCORES = 1 << 22


class Top:
    """The best k documents of each query so far.

    Attributes:
        scores: float32 [Q, k], falling, -inf where there is none; rows: int64 [Q, k], documents.
    """

    def __init__(self, n_queries: int, k: int) -> None:
        self.scores = np.full((n_queries, k), -np.inf, np.float32)
        self.rows = np.full((n_queries, k), -1, np.int64)

    def update(self, queries: slice, scores: Scores, start: int) -> NDArray[np.int64]:
        """Take in documents start to start + w.

        Args:
            scores: float32 [n, w] of the queries `queries`; -inf is a document not found.

        Returns:
            int64 [n, k], where each kept place comes from: below k a place before, from k on a
            column of `scores`.
        """
        held, rows = self.scores[queries], self.rows[queries]
        k = held.shape[1]
        both = np.concatenate([held, scores], axis=1)
        # Stable, and earlier documents stand first: a tie keeps their order.
        order = np.argsort(-both, axis=1, kind="stable")[:, :k]
        self.scores[queries] = np.take_along_axis(both, order, 1)
        new = np.broadcast_to(np.arange(start, start + scores.shape[1]), scores.shape)
        self.rows[queries] = np.take_along_axis(np.concatenate([rows, new], axis=1), order, 1)
        return order

    def rankings(self) -> list[list[int]]:
        """Per query the documents found, best first."""
        found = np.isfinite(self.scores)
        return [row[there].tolist() for row, there in zip(self.rows, found, strict=True)]


class Candidates:
    """Dense's best N documents of each query so far, and their other scores."""

    def __init__(self, n_queries: int, n: int) -> None:
        self.dense = Top(n_queries, n)
        self.others = {
            mode: np.full((n_queries, n), -np.inf, np.float32) for mode in ("sparse", "colbert")
        }

    def update(
        self, at: slice, queries: Embeddings, window: Embeddings, found: Mapping[str, Scores],
        start: int,
    ) -> None:  # fmt: skip
        """Take in a window; only those of it that come among the best get a MaxSim."""
        order = self.dense.update(at, found["dense"], start)
        n = order.shape[1]
        row, place = np.nonzero(order >= n)
        pairs = np.stack([row, order[row, place] - n], axis=1)
        late = scoring.all_scores(_late_only(queries), _late_only(window), pairs)["colbert"]
        for mode, new in (("sparse", found["sparse"][tuple(pairs.T)]), ("colbert", late)):
            kept = np.take_along_axis(self.others[mode][at], np.minimum(order, n - 1), 1)
            kept[row, place] = new
            self.others[mode][at] = kept

    def rankings(self, weights: Triple | None, k: int) -> list[list[int]]:
        """Ordered by their hybrid score, or with no weights by MaxSim; equal ones as documents."""
        scores = self.others["colbert"]
        if weights is not None:
            scores = scoring.hybrid_scores({"dense": self.dense.scores, **self.others}, weights)
        there = self.dense.rows >= 0
        scores = np.where(there, scores, -np.inf)
        order = np.lexsort((self.dense.rows, -scores), axis=1)
        rows = np.take_along_axis(self.dense.rows, order, 1)
        return [row[row >= 0][:k].tolist() for row in rows]


class Ranker:
    """Ranks documents, which come in windows, for all queries in every mode.

    A lexical score of 0 means no shared token: such a document is not found by `sparse`.
    """

    def __init__(
        self, queries: Embeddings, weights: Mapping[str, Triple], k: int, rerank: int = 0
    ) -> None:
        """Nothing ranked yet.

        Args:
            queries: Q queries.
            weights: hybrid mode -> (dense, sparse, colbert), used if the queries have all three;
                one with a colbert weight of 0 needs no MaxSim.
            k: documents kept per ranking.
            rerank: 0, or how many of dense's best are scored by `colbert` and by hybrids with it,
                as in the paper (200); these then rank no others.
        """
        self.queries, self.k, self.seen = queries, k, 0
        n = len(queries)
        modes = [m for m in BASIC if getattr(queries, m) is not None]
        self.hybrids = dict(weights) if len(modes) == 3 else {}
        self.modes = [*modes, *self.hybrids]
        reranked = ["colbert", *(m for m in self.hybrids if self.hybrids[m][2] > 0)]
        self.late = reranked if rerank and self.hybrids else []
        self.candidates = Candidates(n, rerank) if self.late else None
        self.tops = {m: Top(n, k) for m in self.modes if m not in self.late}

    def update(self, window: Embeddings) -> None:
        """Take in the documents that follow those before."""
        for at, block in blocks(self.queries, len(window)):
            some = replace(block, colbert=None) if self.late else block
            scores = scoring.all_scores(some, window)
            if self.candidates is not None:
                self.candidates.update(at, block, window, scores, self.seen)
            for mode, top in self.tops.items():
                top.update(at, _values(mode, scores, self.hybrids), self.seen)
        self.seen += len(window)

    def rankings(self) -> dict[str, list[list[int]]]:
        """Mode -> per query the rows of up to k documents, best first.

        Modes are those that the queries were encoded for, then the hybrids.
        """
        found = {mode: top.rankings() for mode, top in self.tops.items()}
        if self.candidates is not None:
            for mode in self.late:
                found[mode] = self.candidates.rankings(self.hybrids.get(mode), self.k)
        return {mode: found[mode] for mode in self.modes}


def rank(
    queries: Embeddings,
    windows: Iterable[Embeddings],
    weights: Mapping[str, Triple],
    k: int,
    rerank: int = 0,
) -> dict[str, list[list[int]]]:
    """What a `Ranker` finds in these windows, which are the documents in order."""
    ranker = Ranker(queries, weights, k, rerank)
    for window in windows:
        ranker.update(window)
    return ranker.rankings()


def blocks(queries: Embeddings, width: int) -> Iterator[tuple[slice, Embeddings]]:
    """Some queries at a time, so that their scores with `width` documents are BLOCK_SCORES."""
    step = max(1, BLOCK_SCORES // max(1, width))
    for start in range(0, len(queries), step):
        at = slice(start, min(len(queries), start + step))
        yield at, queries.view(at.start, at.stop)


def _late_only(given: Embeddings) -> Embeddings:
    return replace(given, dense=None, sparse=None)


def _values(mode: str, scores: dict[str, Scores], hybrids: Mapping[str, Triple]) -> Scores:
    if mode == "sparse":
        return np.where(scores["sparse"] > 0, scores["sparse"], np.float32(-np.inf))
    if mode in scores:
        return scores[mode]
    return scoring.hybrid_scores(
        {m: scores[m] for m, w in zip(BASIC, hybrids[mode], strict=True) if w > 0}, hybrids[mode]
    )
