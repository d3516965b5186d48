"""Which texts share a batch: by token budget and length, never by a fixed count."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def plan_batches(
    lengths: NDArray[np.int64], token_budget: int, max_texts: int | None = None
) -> list[NDArray[np.int64]]:
    """Group texts into batches of at most `token_budget` tokens, longest texts first.

    A text longer than the budget gets a batch of its own. Texts of equal length keep their order,
    so the same input always makes the same batches.

    Args:
        lengths: [N] tokens per text.
        token_budget: most tokens per batch.
        max_texts: most texts per batch; None for no limit.

    Returns:
        Arrays of text indices; every index stands in exactly one of them.
    """
    order = np.argsort(-lengths, kind="stable")
    ends = np.concatenate([[0], np.cumsum(lengths[order])])
    batches: list[NDArray[np.int64]] = []
    start = 0
    while start < len(order):
        stop = int(np.searchsorted(ends, ends[start] + token_budget, side="right")) - 1
        stop = max(stop, start + 1)
        if max_texts is not None:
            stop = min(stop, start + max_texts)
        batches.append(order[start:stop])
        start = stop
    return batches
