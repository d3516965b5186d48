"""Measures of rankings, computed by ir-measures (trec_eval; for MRR, MS MARCO's code)."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from m3fast.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from m3fast.evaluate.dataset import Dataset

# Our name -> ir-measures' name, in the order of the tables.
MEASURES = {"nDCG@10": "nDCG@10", "Recall@100": "R@100", "MRR@10": "RR@10", "R@1": "Success@1"}
DEPTH = 100  # of the deepest measure: no more of a ranking is kept


def need_library() -> None:
    """InputError naming the extra to install where ir-measures is missing."""
    if importlib.util.find_spec("ir_measures") is None:
        raise InputError("eval needs ir-measures: pip install 'm3fast[eval]'")


def measure(dataset: Dataset, rankings: Sequence[Sequence[int]]) -> dict[str, float]:
    """Means over all queries.

    The order is the only thing that counts: the library gets falling integers as scores, since
    trec_eval would break ties in its own way (by falling document id).

    Args:
        dataset: Q queries; rankings: per query the rows of the documents found, best first.

    Returns:
        The value of each of MEASURES, 0 to 1. A query for which nothing was found counts 0.
    """
    import ir_measures

    ids = dataset.documents.ids
    run = {
        query: {ids[row]: float(len(found) - rank) for rank, row in enumerate(found)}
        for query, found in zip(dataset.queries.ids, rankings, strict=True)
    }
    qrels = {query: dict(dataset.qrels[query]) for query in dataset.queries.ids}
    wanted = {name: ir_measures.parse_measure(theirs) for name, theirs in MEASURES.items()}
    found = ir_measures.evaluator(list(wanted.values()), qrels).calc_aggregate(run)
    return {name: float(found[theirs]) for name, theirs in wanted.items()}
