"""Retrieval figures of a model per language and mode. See docs/evaluation.md."""

from __future__ import annotations

from m3fast.evaluate.against import Comparison, compare
from m3fast.evaluate.dataset import Dataset, Texts, cross
from m3fast.evaluate.loading import builtin, load_dataset, pick
from m3fast.evaluate.run import Evaluation, Result, evaluate, hybrid_weights, n_texts

__all__ = [
    "Comparison",
    "Dataset",
    "Evaluation",
    "Result",
    "Texts",
    "builtin",
    "compare",
    "cross",
    "evaluate",
    "hybrid_weights",
    "load_dataset",
    "n_texts",
    "pick",
]
