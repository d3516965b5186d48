"""Encodings as FlagEmbedding has them, and how far two of them differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

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
