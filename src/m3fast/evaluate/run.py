"""An evaluation: encodes each text once, ranks in every mode, and measures the rankings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from typing import TYPE_CHECKING

from m3fast.engine.assembly import join
from m3fast.errors import InputError
from m3fast.evaluate.measures import DEPTH, MEASURES, measure, need_library
from m3fast.evaluate.ranking import Ranker
from m3fast.scoring import PAPER_WEIGHTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from m3fast.engine.engine import Engine
    from m3fast.evaluate.dataset import Dataset, Texts
    from m3fast.types import Embeddings

    Triple = tuple[float, float, float]
    Values = dict[str, dict[str, float]]  # mode -> measure -> value

# The paper's names for what hybrids of three and of two modes weigh.
NAMES = ("miracl", "mkqa", "mldr", "equal")
DENSE_SPARSE, ALL = "dense+sparse", "all"
# MaxSim with more documents than that waits for dense's best, of which the paper takes 200.
EXACT_DOCUMENTS, PAPER_RERANK = 10_000, 200


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
    rerank: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Evaluation:
    """Retrieval figures of a model: dense, sparse, colbert, dense+sparse, all.

    Every text is encoded once, for all outputs. Documents pass by in windows and are not held;
    the queries are, of all datasets in a row that share their documents (one `Texts` object).

    Args:
        engine: the model; one with a dense head only gets the mode dense only.
        datasets: what to measure on, at least one.
        weights: of the hybrids: `miracl`, `mkqa`, `mldr`, `equal` or (dense, sparse, colbert).
        rerank: how many of dense's best documents colbert and all rank; 0 for all documents;
            None for 0, or for the paper's 200 where a dataset has more than 10,000 documents.
        progress: called with the number of texts encoded since the last call.

    Raises:
        InputError: an argument is not as described, or ir-measures is missing.
    """
    both, rerank = settle(engine, datasets, weights, rerank)
    tell = progress or silent
    results: list[Result] = []
    for shared in together(datasets):
        passing = Pass(engine, shared, both, rerank, tell)
        for _ in passing.windows():
            pass
        results += passing.results()
    return Evaluation(tuple(results), both, rerank)


def settle(
    engine: Engine,
    datasets: Sequence[Dataset],
    weights: str | Sequence[float],
    rerank: int | None,
) -> tuple[dict[str, Triple], int]:
    """The weights of both hybrids, and how many of dense's best are re-ranked.

    Raises:
        InputError: as `evaluate` does.
    """
    need_library()
    both = hybrid_weights(weights)
    if rerank is not None and (not isinstance(rerank, int) or rerank < 0):
        raise InputError(f"rerank: expected an integer from 0 on, found {rerank!r}")
    if not datasets:
        raise InputError("datasets: expected at least one, found none")
    full = engine.outputs.sparse and engine.outputs.colbert
    if rerank and not full:
        raise InputError(f"rerank: expected 0 for a model without a colbert head, found {rerank}")
    if rerank is None:
        large = max(len(data.documents) for data in datasets) > EXACT_DOCUMENTS
        rerank = PAPER_RERANK if large and full else 0
    return both, rerank


def together(datasets: Sequence[Dataset]) -> list[list[Dataset]]:
    """Datasets in a row that share their documents, which are then encoded once."""
    return [list(shared) for _, shared in groupby(datasets, key=lambda data: id(data.documents))]


def n_texts(datasets: Sequence[Dataset]) -> int:
    """How many texts `evaluate` encodes, for a progress bar."""
    documents = sum(len(shared[0].documents) for shared in together(datasets))
    return documents + sum(len(data.queries) for data in datasets)


class Pass:
    """One engine's way through datasets that share their documents.

    Attributes:
        datasets: at least one; queries: Embeddings of all their queries, one after the other.
    """

    def __init__(
        self,
        engine: Engine,
        datasets: list[Dataset],
        weights: dict[str, Triple],
        rerank: int,
        progress: Callable[[int], object],
    ) -> None:
        """Encode the queries; `progress` as in `evaluate`."""
        self.engine, self.datasets, self.progress = engine, datasets, progress
        parts = [join(list(_encode(engine, data.queries, progress))) for data in datasets]
        self.cuts = [int(part.truncated.sum()) for part in parts]
        self.documents_cut = 0
        self.queries = join(parts)
        self.ranker = Ranker(self.queries, weights, DEPTH, rerank)

    def windows(self) -> Iterator[Embeddings]:
        """Encode and rank the documents, in windows."""
        for window in _encode(self.engine, self.datasets[0].documents, self.progress):
            self.documents_cut += int(window.truncated.sum())
            self.ranker.update(window)
            yield window

    def rankings(self) -> list[dict[str, list[list[int]]]]:
        """Of each dataset: mode -> per query the rows of the documents found, best first."""
        found = self.ranker.rankings()
        ends = list(accumulate(len(data.queries) for data in self.datasets))
        return [
            {mode: rows[start:end] for mode, rows in found.items()}
            for start, end in pairwise([0, *ends])
        ]

    def results(self) -> list[Result]:
        """Of each dataset, once all windows have passed."""
        return [
            Result(
                data.name,
                len(data.queries),
                len(data.documents),
                cut + self.documents_cut,
                {mode: measure(data, rows) for mode, rows in found.items()},
            )
            for data, cut, found in zip(self.datasets, self.cuts, self.rankings(), strict=True)
        ]


def _encode(
    engine: Engine, texts: Texts, progress: Callable[[int], object]
) -> Iterator[Embeddings]:
    for window in engine.encode_iter(texts.texts, show_progress=False):
        progress(len(window))
        yield window


def silent(_: int) -> None:
    """Tells nobody."""
