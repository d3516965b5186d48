"""Published scores of the genuine BGE-M3 weights, and the tolerance of each dtype.

The scores are those of FlagEmbedding's README examples, computed there in float16.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m3fast.errors import InputError

if TYPE_CHECKING:
    from m3fast import Embeddings, Engine

QUERIES = ("What is BGE M3?", "Defination of BM25")
PASSAGES = (
    "BGE M3 is an embedding model supporting dense retrieval, lexical matching and "
    "multi-vector interaction.",
    "BM25 is a bag-of-words retrieval function that ranks a set of documents based on the "
    "query terms appearing in each document",
)
# [query][passage]
SCORES = {
    "dense": ((0.626, 0.3477), (0.3496, 0.678)),
    "sparse": ((0.19554901, 0.00880432), (0.0, 0.18036556)),
    "colbert": ((0.779825, 0.4621), (0.4524, 0.789927)),
}
# float16 has steps of 0.0005 at 0.6, in the goldens and in the vectors behind them.
TOLERANCE = {"float32": 2e-3, "float16": 3e-3, "bfloat16": 2e-2}
# The lexical fixture was made in float32, from the same weights.
LEXICAL_TOLERANCE = 5e-4
SHAPE = {"vocab_size": 250002, "hidden_size": 1024, "n_layers": 24}


def why_not_genuine(engine: Engine) -> str:
    """Why the goldens cannot apply to this model; empty where its shape is BGE-M3's."""
    found = {name: getattr(engine.config, name) for name in SHAPE}
    if found != SHAPE:
        return f"not BGE-M3: expected {SHAPE}, found {found}"
    if engine.config.int8:
        return "the folder's weights are in int8: the published scores are those of floats"
    return "" if engine.outputs.sparse else "not BGE-M3: it has no sparse and ColBERT heads"


def score_errors(queries: Embeddings, passages: Embeddings) -> dict[str, float]:
    """Largest distance from the goldens of each head."""
    from m3fast.scoring import all_scores

    found = all_scores(queries, passages)
    return {head: float(abs(found[head] - golden).max()) for head, golden in SCORES.items()}


def read_fixture(path: str) -> list[tuple[str, dict[int, float]]]:
    """(text, {token id: weight}) pairs from `{"items": [{"text", "lexical_weights"}, ...]}`.

    Raises:
        InputError: another shape; OSError: the file cannot be opened.
    """
    try:
        items: Any = json.loads(Path(path).read_text(encoding="utf-8"))["items"]
        return [
            (str(item["text"]), {int(i): float(w) for i, w in item["lexical_weights"].items()})
            for item in items
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        wanted = '{"items": [{"text", "lexical_weights": {id: weight}}, ...]}'
        raise InputError(f"{path}: expected {wanted}, found {error!r}") from error


def lexical_error(engine: Engine, fixture: list[tuple[str, dict[int, float]]]) -> float:
    """Largest difference of a weight; an id that one side lacks weighs 0 there."""
    texts = [text for text, _ in fixture]
    found = engine.encode(texts, dense=False, sparse=True, colbert=False, show_progress=False)
    rows = found.sparse.to_dicts() if found.sparse is not None else []
    return max(
        (
            abs(row.get(i, 0.0) - expected.get(i, 0.0))
            for row, (_, expected) in zip(rows, fixture, strict=True)
            for i in row.keys() | expected.keys()
        ),
        default=0.0,
    )
