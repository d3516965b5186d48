"""Jobs for the lanes of an async engine."""

from __future__ import annotations

import math
from collections.abc import Sequence

from m3fast.aio.lanes import Job, Lanes

BUDGET = 100  # tokens of a batch
FAR = math.inf


def job(sizes: Sequence[int], *, query: bool = False, deadline: float = FAR) -> Job[None]:
    return Job(sizes, query, deadline, None)


def push(
    lanes: Lanes[None],
    sizes: Sequence[int],
    now: float = 0.0,
    *,
    query: bool = False,
    deadline: float = FAR,
) -> Job[None]:
    pushed = job(sizes, query=query, deadline=deadline)
    lanes.reserve(2, query=query)
    lanes.push(pushed, 2, now)
    return pushed
