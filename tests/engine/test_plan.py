"""Batches: every text once, within the budget, longest first, the same each time."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from m3fast.engine.plan import plan_batches


@given(
    st.lists(st.integers(1, 600), max_size=80),
    st.integers(1, 2000),
    st.one_of(st.none(), st.integers(1, 9)),
)
def test_plan(lengths: list[int], budget: int, max_texts: int | None) -> None:
    sizes = np.array(lengths, np.int64)
    batches = plan_batches(sizes, budget, max_texts)
    assert sorted(i for batch in batches for i in batch.tolist()) == list(range(len(lengths)))
    flat = [lengths[i] for batch in batches for i in batch.tolist()]
    assert flat == sorted(lengths, reverse=True)
    for batch in batches:
        assert len(batch) == 1 or sizes[batch].sum() <= budget
        assert max_texts is None or len(batch) <= max_texts
    # Greedy: no batch could have taken the first text of the next.
    for batch, after in itertools.pairwise(batches):
        full = max_texts is not None and len(batch) == max_texts
        assert full or sizes[batch].sum() + sizes[after[0]] > budget
    again = plan_batches(sizes, budget, max_texts)
    assert [b.tolist() for b in again] == [b.tolist() for b in batches]
