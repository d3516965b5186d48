"""How near one engine's embeddings are to another's of the same texts, window by window."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from m3fast import scoring
from m3fast.errors import InputError
from m3fast.evaluate.ranking import Top, blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from m3fast.types import Embeddings, SparseRows

    Floats = NDArray[np.floating]
    Figures = dict[str, dict[str, dict[str, float]]]  # head -> of what -> figure -> value

BEST = 10  # documents, and terms, that two engines are to have in common
KEPT = 1 << 22  # numbers of a sample: 16 MiB
ROWS = 4096  # vectors that are compared at a time


class Sample:
    """Numbers of which every n-th is kept, n growing so that memory does not.

    Attributes:
        least: of all numbers, inf of none; values: float32, those kept.
    """

    def __init__(self, room: int = KEPT) -> None:
        self.least, self._room, self._step, self._seen = np.inf, room, 1, 0
        self._parts: list[Floats] = []

    def add(self, values: Floats) -> None:
        """Take in numbers [n]."""
        if not len(values):
            return
        self.least = min(self.least, float(values.min()))
        kept = values[-self._seen % self._step :: self._step].astype(np.float32)
        self._seen += len(values)
        self._parts.append(kept)
        while sum(map(len, self._parts)) > self._room:
            self._parts, self._step = [self.values[::2]], 2 * self._step

    @property
    def values(self) -> Floats:
        return np.concatenate([np.empty(0, np.float32), *self._parts])

    def figures(self) -> dict[str, float]:
        """1st percentile, median and least, of one number or more."""
        low, middle = (float(v) for v in np.percentile(self.values, [1, 50]))
        return {"p1": low, "median": middle, "min": self.least}


class Terms:
    """Lexical weights of the same texts beside each other."""

    def __init__(self) -> None:
        self._texts, self._shared, self._error, self._whole = 0, 0.0, 0.0, 0.0

    def add(self, ours: SparseRows, theirs: SparseRows) -> None:
        """Take in N texts."""
        self._texts += len(ours)
        self._shared += sum(map(overlap, _heaviest(ours), _heaviest(theirs)))
        wide = theirs.to_scipy().astype(np.float64)
        error = ours.to_scipy().astype(np.float64) - wide
        self._error += float(error.multiply(error).sum())
        self._whole += float(wide.multiply(wide).sum())

    def figures(self) -> dict[str, float]:
        """Mean share of the ten heaviest terms in common; rms of the error over that of weights."""
        error = float(np.sqrt(self._error / max(self._whole, 1e-30)))
        return {"best": self._shared / self._texts, "error": error}


class Late:
    """MaxSim of each query with the reference's ten best documents by dense, by either engine."""

    def __init__(self, ours: Embeddings, theirs: Embeddings) -> None:
        """Of Q queries."""
        self._ours, self._theirs, self._seen = ours, theirs, 0
        self._top = Top(len(theirs), BEST)
        self._errors = np.zeros((len(theirs), BEST), np.float32)

    def update(self, ours: Embeddings, theirs: Embeddings) -> None:
        """Take in the documents that follow those before."""
        assert theirs.dense is not None
        for at, block in blocks(self._theirs, len(theirs)):
            assert block.dense is not None
            dense = scoring.dense_scores(block.dense, theirs.dense)
            order = self._top.update(at, dense, self._seen)
            row, place = np.nonzero(order >= BEST)
            pairs = np.stack([row, order[row, place] - BEST], axis=1)
            kept = np.take_along_axis(self._errors[at], np.minimum(order, BEST - 1), 1)
            mine = self._ours.view(at.start, at.stop)
            kept[row, place] = np.abs(_maxsim(mine, ours, pairs) - _maxsim(block, theirs, pairs))
            self._errors[at] = kept
        self._seen += len(theirs)

    def errors(self) -> Floats:
        """float32 [pairs], absolute."""
        return self._errors[self._top.rows >= 0]


class Nearness:
    """All heads of all texts: documents and queries apart."""

    def __init__(self) -> None:
        self._dense = {"documents": Sample(), "queries": Sample()}
        self._terms = {"documents": Terms(), "queries": Terms()}
        self._tokens = {"documents": Sample(), "queries": Sample()}
        self._errors: list[Floats] = []
        self._heads = {"dense"}

    def add(self, kind: str, ours: Embeddings, theirs: Embeddings) -> None:
        """Take in N texts.

        Args:
            kind: `documents` or `queries`.

        Raises:
            InputError: the engines do not have the same tokens of a text.
        """
        if not np.array_equal(ours.n_tokens, theirs.n_tokens):
            text = int((ours.n_tokens != theirs.n_tokens).argmax())
            found = (int(e.n_tokens[text]) for e in (theirs, ours))
            raise InputError("against: expected {} tokens of a text, found {}".format(*found))
        if ours.dense is not None and theirs.dense is not None:
            self._dense[kind].add(cosines(ours.dense, theirs.dense))
        if ours.sparse is not None and theirs.sparse is not None:
            self._heads.add("sparse")
            self._terms[kind].add(ours.sparse, theirs.sparse)
        if ours.colbert is not None and theirs.colbert is not None:
            self._heads.add("colbert")
            a, b = ours.colbert.values, theirs.colbert.values
            for start in range(0, len(a), ROWS):
                self._tokens[kind].add(cosines(a[start : start + ROWS], b[start : start + ROWS]))

    def add_late(self, late: Late) -> None:
        """Take in what MaxSim came to, once all documents have passed."""
        self._errors.append(late.errors())

    def figures(self) -> Figures:
        """Of each head that there is. Cosines of vectors are `p1`, `median`, `min`."""
        found: Figures = {"dense": {kind: s.figures() for kind, s in self._dense.items()}}
        if "sparse" in self._heads:
            found["sparse"] = {kind: terms.figures() for kind, terms in self._terms.items()}
        if "colbert" in self._heads:
            errors = np.concatenate(self._errors).astype(np.float64)
            found["colbert"] = {kind: s.figures() for kind, s in self._tokens.items()}
            found["colbert"]["maxsim"] = {
                "mean": float(errors.mean()),
                "max": float(errors.max()),
                "pairs": len(errors),
            }
        return found


def cosines(a: Floats, b: Floats) -> Floats:
    """float64 [n], of the rows of a and b [n, H]; 1 of two rows of zeros."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    products = np.einsum("nh,nh->n", x, y)
    same = (x == y).all(1)
    return np.where(same, 1.0, np.minimum(1.0, products / np.maximum(norms, 1e-30)))


def overlap(ours: list[int], theirs: list[int]) -> float:
    """Share of the longer list's members that both have; 1 of two empty ones."""
    longer = max(len(ours), len(theirs))
    return len(set(ours) & set(theirs)) / longer if longer else 1.0


def _heaviest(rows: SparseRows) -> Iterator[list[int]]:
    for start, end in pairwise(rows.indptr.tolist()):
        order = np.argsort(-rows.values[start:end], kind="stable")[:BEST]
        yield rows.indices[start:end][order].tolist()


def _maxsim(queries: Embeddings, documents: Embeddings, pairs: NDArray[np.int64]) -> Floats:
    assert queries.colbert is not None and documents.colbert is not None
    return scoring.colbert_scores(queries.colbert, documents.colbert, pairs)
