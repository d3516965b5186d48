"""Encodings as FlagEmbedding has them, and how far two of them differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bench.core.dtypes import INT8_GAP, LEAST_COSINE
from bench.core.workloads import OUTPUTS
from bench.peers.linears import LINEARS

Encoded = dict[str, Any]
KEYS = dict(zip(OUTPUTS, ("dense_vecs", "lexical_weights", "colbert_vecs"), strict=True))


def differ(
    tolerance: float, outputs: Sequence[str] = OUTPUTS
) -> Callable[[str, Encoded | None, Encoded | None], str]:
    """A judge of encodings: the largest difference of each output, where it is above tolerance."""

    def judge(name: str, truth: Encoded | None, found: Encoded | None) -> str:
        if truth is None or found is None:  # bare linears encode nothing
            return "" if name == LINEARS else "no result"
        missing = [o for o in outputs if truth.get(KEYS[o]) is None or found.get(KEYS[o]) is None]
        if missing:
            return f"no {', '.join(missing)}"
        worst = {o: _GAPS[o](truth[KEYS[o]], found[KEYS[o]]) for o in outputs}
        # Not `v > tolerance`, which NaN passes.
        return ", ".join(f"{k} off by {v:.2g}" for k, v in worst.items() if not v <= tolerance)

    return judge


class Cosines:
    """A judge of encodings in eight bits: cosines with those in fp32, which it keeps.

    Of each text, its dense vector and its token vectors (taken as one) are held to LEAST_COSINE,
    its token weights to INT8_GAP: of a text with next to none a cosine says nothing.

    Args:
        truth: name of the candidate that computes in fp32. Without it no other is right.
    """

    def __init__(self, truth: str, outputs: Sequence[str] = OUTPUTS) -> None:
        self._truth, self._outputs = truth, outputs
        self._seen: dict[str, dict[str, list[float]]] = {}

    def __call__(self, name: str, truth: Encoded | None, found: Encoded | None) -> str:
        if name == LINEARS:  # they encode nothing
            return ""
        if name != self._truth and self._truth not in self._seen:
            return f"failed: no {self._truth}, whose fp32 it is held against"
        its = self._seen.setdefault(name, {})
        if truth is None or found is None:
            return "no result"
        bad = []
        for output in self._outputs:
            a, b = truth.get(KEYS[output]), found.get(KEYS[output])
            if a is None or b is None:
                bad.append(f"no {output}")
                continue
            if output == "sparse":
                its.setdefault(output, []).append(gap := _lexical_gap(a, b))
                if not gap <= INT8_GAP:  # as below, NaN does not pass
                    bad.append(f"sparse off by {gap:.2g}, and {INT8_GAP} is allowed")
                continue
            of_texts = _COSINES[output](a, b)
            its.setdefault(output, []).extend(of_texts)
            if not (worst := float(np.min(of_texts, initial=1.0))) >= LEAST_COSINE:
                bad.append(f"{output}: cosine {worst:.4f} with fp32, {LEAST_COSINE} is allowed")
        return ", ".join(bad)

    def of(self, name: str) -> dict[str, float] | None:
        """Over all texts: `p1` and `min` of the dense vectors, the 1st percentile and the least.

        And where there are such outputs `colbert`, the least of token vectors, and `gap`, the
        largest of token weights. None of the truth, and of what has no dense vectors.
        """
        its = self._seen.get(name, {})
        if name == self._truth or not (dense := its.get("dense")):
            return None
        found = {"texts": len(dense), "p1": float(np.quantile(dense, 0.01))}
        found["min"] = float(np.min(dense))
        if "colbert" in its:
            found["colbert"] = float(np.min(its["colbert"]))
        if "sparse" in its:
            found["gap"] = float(np.max(its["sparse"]))
        return {key: round(value, 6) for key, value in found.items()}


def _cosine(a: Any, b: Any) -> float:
    a, b = (np.ravel(np.asarray(x, np.float64)) for x in (a, b))
    if a.shape != b.shape:
        return -1.0
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    if lengths == 0:
        return 1.0 if np.array_equal(a, b) else 0.0
    return float(a @ b) / lengths


def _of_vectors(truth: np.ndarray, found: np.ndarray) -> list[float]:
    """Of dense vectors [N, H], or of one text's, [H]."""
    pairs = zip(np.atleast_2d(truth), np.atleast_2d(found), strict=True)
    return [_cosine(*pair) for pair in pairs]


def _of_tokens(truth: Any, found: Any) -> list[float]:
    return [_cosine(*pair) for pair in zip(_rows(truth), _rows(found), strict=True)]


_COSINES = {"dense": _of_vectors, "colbert": _of_tokens}


def _lexical_gap(truth: Any, found: Any) -> float:
    rows = zip(_rows(truth), _rows(found), strict=True)
    gaps = [a.get(k, 0) - b.get(k, 0) for a, b in rows for k in {*a, *b}]
    return float(np.max(np.abs(gaps), initial=0.0))  # np.max, unlike max, keeps a NaN


def _colbert_gap(truth: Any, found: Any) -> float:
    rows = zip(_rows(truth), _rows(found), strict=True)
    return float(np.max([_gap(a, b) for a, b in rows], initial=0.0))


def _rows(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _gap(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.max(np.abs(a - b), initial=0.0)) if a.shape == b.shape else np.inf


_GAPS = {"dense": _gap, "sparse": _lexical_gap, "colbert": _colbert_gap}
