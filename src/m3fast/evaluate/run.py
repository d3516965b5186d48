"""Encode, rank, measure: each text once, whatever the number of modes and measures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from m3fast.errors import InputError
from m3fast.evaluate.measures import DEPTH, MEASURES, measure, need_library
from m3fast.evaluate.ranking import rank
from m3fast.scoring import PAPER_WEIGHTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from m3fast.engine import Engine
    from m3fast.evaluate.dataset import Dataset, Texts
    from m3fast.types import Embeddings

    Triple = tuple[float, float, float]
    Values = dict[str, dict[str, float]]  # mode -> measure -> value

# The paper's names for what hybrids of three and of two modes weigh.
NAMES = ("miracl", "mkqa", "mldr", "equal")
DENSE_SPARSE, ALL = "dense+sparse", "all"
# Documents whose embeddings are kept for the next dataset, if it has the same ones.
KEPT_DOCUMENTS = 4096


@dataclass(frozen=True, slots=True)
class Result:
    """One dataset's figures.

    Attributes:
        name: the dataset's; queries, documents: how many; cut: texts longer than max_length.
        values: mode -> measure -> mean over the queries, 0 to 1.
    """

    name: str
    queries: int
    documents: int
    cut: int
    values: Values


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All datasets' figures, and what they were made with.

    Attributes:
        weights: hybrid mode -> (dense, sparse, colbert).
        rerank: 0, or how many of dense's best the modes with MaxSim ranked.
    """

    results: tuple[Result, ...]
    weights: dict[str, Triple]
    rerank: int

    @property
    def modes(self) -> list[str]:
        return list(self.results[0].values)

    @property
    def mean(self) -> Values:
        """Mean over the datasets, each counting alike."""
        return {
            mode: {
                name: math.fsum(r.values[mode][name] for r in self.results) / len(self.results)
                for name in MEASURES
            }
            for mode in self.modes
        }


def hybrid_weights(weights: str | Sequence[float]) -> dict[str, Triple]:
    """Weights of both hybrids, from one of NAMES or (dense, sparse, colbert).

    The paper's dense+sparse is not always its triple without the last number: MLDR has
    (0.15, 0.5, 0.35) and (0.2, 0.8, 0).

    Raises:
        InputError: neither, a weight below 0, or dense and sparse both 0.
    """
    if isinstance(weights, str):
        if weights not in NAMES:
            raise InputError(
                f"weights: expected one of {', '.join(NAMES)} or dense,sparse,colbert as in "
                f"1,0.3,1, found {weights!r}"
            )
        full = PAPER_WEIGHTS.get(weights, (1.0, 1.0, 1.0))
        two = PAPER_WEIGHTS.get(f"{weights}-dense-sparse", (*full[:2], 0.0))
        return {DENSE_SPARSE: two, ALL: full}
    numbers = tuple(map(float, weights))
    if len(numbers) != 3 or not all(math.isfinite(w) and w >= 0 for w in numbers):
        raise InputError(f"weights: expected three numbers from 0 on, found {list(weights)}")
    dense, sparse, colbert = numbers
    if dense + sparse == 0:
        raise InputError("weights: expected dense or sparse above 0, found both 0")
    return {DENSE_SPARSE: (dense, sparse, 0.0), ALL: (dense, sparse, colbert)}


def evaluate(
    engine: Engine,
    datasets: Sequence[Dataset],
    *,
    weights: str | Sequence[float] = "miracl",
    rerank: int = 0,
    progress: Callable[[int], object] | None = None,
) -> Evaluation:
    """Retrieval figures of a model: dense, sparse, colbert, dense+sparse, all.

    A text is encoded once, for all outputs. Documents that follow each other in several datasets
    (the same `Texts` object, up to 4,096 of them) are encoded once for all of these.

    Args:
        engine: the model; one with a dense head only gets the mode dense only.
        datasets: what to measure on, at least one.
        weights: of the hybrids: `miracl`, `mkqa`, `mldr`, `equal` or (dense, sparse, colbert).
        rerank: how many of dense's best documents colbert and all rank; 0 for all documents.
        progress: called with the number of texts encoded since the last call.

    Raises:
        InputError: an argument is not as described, or ir-measures is missing.
    """
    need_library()
    both = hybrid_weights(weights)
    if not isinstance(rerank, int) or rerank < 0:
        raise InputError(f"rerank: expected an integer from 0 on, found {rerank!r}")
    if not datasets:
        raise InputError("datasets: expected at least one, found none")
    encoder = _Encoder(engine, progress)
    results: list[Result] = []
    for data in datasets:
        queries = encoder.queries(data.queries)
        cut = int(queries.truncated.sum())
        cuts: list[int] = []
        windows = encoder.documents(data.documents, cuts)
        found = rank(queries, windows, both, DEPTH, rerank)
        values = {mode: measure(data, rankings) for mode, rankings in found.items()}
        results.append(
            Result(data.name, len(data.queries), len(data.documents), cut + sum(cuts), values)
        )
    return Evaluation(tuple(results), both, rerank)


def n_texts(datasets: Sequence[Dataset]) -> int:
    """How many texts `evaluate` encodes, for a progress bar."""
    total, last = 0, None
    for data in datasets:
        kept = data.documents is last and len(data.documents) <= KEPT_DOCUMENTS
        total += len(data.queries) + (0 if kept else len(data.documents))
        last = data.documents
    return total


class _Encoder:
    def __init__(self, engine: Engine, progress: Callable[[int], object] | None) -> None:
        self.engine, self.progress = engine, progress
        self._texts: Texts | None = None
        self._kept: list[Embeddings] = []

    def queries(self, texts: Texts) -> Embeddings:
        from m3fast.assembly import join

        return join(list(self._encode(texts)))

    def documents(self, texts: Texts, cuts: list[int]) -> Iterator[Embeddings]:
        if self._texts is not texts:
            self._texts, self._kept = None, []
            keep = len(texts) <= KEPT_DOCUMENTS
            for window in self._encode(texts):
                if keep:
                    self._kept.append(window)
                cuts.append(int(window.truncated.sum()))
                yield window
            if keep:
                self._texts = texts
            return
        for window in self._kept:
            cuts.append(int(window.truncated.sum()))
            yield window

    def _encode(self, texts: Texts) -> Iterator[Embeddings]:
        for window in self.engine.encode_iter(texts.texts, show_progress=False):
            if self.progress is not None:
                self.progress(len(window))
            yield window
