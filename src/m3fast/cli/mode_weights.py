"""Reads --weights: how much dense, sparse and ColBERT scores count in a hybrid one."""

from __future__ import annotations

import math

from m3fast.errors import InputError
from m3fast.scoring import PAPER_WEIGHTS


def parse_weights(text: str) -> tuple[float, float, float]:
    """(dense, sparse, colbert) from `1,0.3,1` or a name in PAPER_WEIGHTS.

    Raises:
        InputError: neither, a weight below 0, or nothing but zeros.
    """
    if text in PAPER_WEIGHTS:
        return PAPER_WEIGHTS[text]
    try:
        dense, sparse, colbert = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"--weights: expected three numbers as in 1,0.3,1 or one of {list(PAPER_WEIGHTS)}, "
            f"found {text!r}"
        ) from None
    numbers = (dense, sparse, colbert)
    if not all(math.isfinite(w) and w >= 0 for w in numbers) or sum(numbers) == 0:
        raise InputError(f"--weights: expected none below 0 and one above it, found {text!r}")
    return numbers
