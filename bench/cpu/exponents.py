"""The exponent of a cost in a size, fitted to samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bench.core.measure import Sampled


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The `a` of seconds ~ size^a: slope of the least-squares line through both logarithms."""
    if len(sizes) < 2 or len(sizes) != len(seconds):
        raise ValueError(f"two or more pairs expected, found {len(sizes)} and {len(seconds)}")
    x, y = np.log(sizes), np.log(seconds)
    x -= x.mean()
    return float((x @ (y - y.mean())) / (x @ x))


def by_round(sizes: Mapping[int, Sampled], per: Mapping[int, float]) -> Sampled:
    """One exponent per round that every size took part in.

    Args:
        per: what a size's seconds are divided by before the fit.
    """
    wrong = next((its.wrong for its in sizes.values() if its.wrong), "")
    rounds = zip(*(its.seconds for its in sizes.values()), strict=False)
    fits = [
        exponent(list(sizes), [s / per[n] for n, s in zip(sizes, seconds, strict=True)])
        for seconds in rounds
    ]
    return Sampled([] if wrong else fits, wrong)
