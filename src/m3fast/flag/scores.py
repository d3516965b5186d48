"""FlagEmbedding's score arithmetic and input rules, apart from any model."""

from __future__ import annotations

from typing import Any

import numpy as np

from m3fast.errors import InputError


def check_sentence_pairs(pairs: Any) -> tuple[list[tuple[str, str]], bool]:
    """(list of pairs, whether a single pair was given), or InputError naming the pair."""
    if isinstance(pairs, np.ndarray):
        pairs = pairs.tolist()
    if not isinstance(pairs, list | tuple):
        raise InputError(
            f"sentence_pairs: expected a list of (query, passage), found {type(pairs).__name__}"
        )
    one_pair = len(pairs) > 0 and isinstance(pairs[0], str)
    listed: Any = [pairs] if one_pair else pairs
    for i, pair in enumerate(listed):
        good = isinstance(pair, list | tuple) and len(pair) == 2
        if not good or not all(isinstance(text, str) for text in pair):
            raise InputError(f"sentence_pairs[{i}]: expected two str, found {pair!r:.80}")
    return [tuple(pair) for pair in listed], one_pair


def lexical_matching_score(first: Any, second: Any) -> Any:
    """See `BGEM3FlagModel.compute_lexical_matching_score`; keys may be ids or tokens."""
    if isinstance(first, dict) and isinstance(second, dict):
        return sum(weight * second[key] for key, weight in first.items() if key in second)
    if not isinstance(first, list) or not isinstance(second, list):
        raise InputError(
            "lexical_weights_1, lexical_weights_2: expected two dicts or two lists, found "
            f"{type(first).__name__} and {type(second).__name__}"
        )
    from scipy.sparse import csr_array

    columns: dict[Any, int] = {}
    for row in (*first, *second):
        for key in row:
            columns.setdefault(key, len(columns))

    def matrix(rows: list[dict[Any, Any]]) -> Any:
        # float64, as the reference gives wherever a score is 0; scipy has no float16.
        values = np.array([w for row in rows for w in row.values()], np.float64)
        indptr = np.cumsum([0, *map(len, rows)])
        indices = np.array([columns[key] for row in rows for key in row], np.int64)
        return csr_array((values, indices, indptr), shape=(len(rows), max(1, len(columns))))

    return (matrix(first) @ matrix(second).T).toarray()
