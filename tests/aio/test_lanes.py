"""The queue: who goes first, who is refused, and how long a batch is."""

from __future__ import annotations

import math

import pytest
from lanejobs import BUDGET, push

from m3fast import InputError
from m3fast.aio.lanes import (
    BULK_TURN,
    QUERY_MEMORY,
    RATE_SECONDS,
    SHORT_BATCH,
    SHORT_BATCH_SECONDS,
    Lanes,
)
from m3fast.errors import OverloadedError


def test_queries_go_first_and_bulk_fills_the_batch() -> None:
    lanes: Lanes[None] = Lanes(BUDGET, 10**6)
    bulk = push(lanes, [40, 40, 40])
    query = push(lanes, [20], query=True)
    parts, _ = lanes.take(0.0)
    assert [(p.job, p.start, p.stop) for p in parts] == [(query, 0, 1), (bulk, 0, 2)]
    parts, _ = lanes.take(0.0)
    assert [(p.job, p.start, p.stop) for p in parts] == [(bulk, 2, 3)]
    assert lanes.take(0.0) == ([], [])


def test_a_turn_of_bulk_leaves_room_for_queries_and_comes_only_after_waiting() -> None:
    lanes: Lanes[None] = Lanes(BUDGET, 10**6)
    for _ in range(3 * BULK_TURN):
        push(lanes, [100], query=True)
        lanes.done(lanes.take(0.0)[0])
    bulk = push(lanes, [60, 30, 30])
    for _ in range(BULK_TURN - 1):  # bulk has not waited until now
        full = push(lanes, [100], query=True)
        assert [p.job for p in lanes.take(0.0)[0]] == [full]
    query = push(lanes, [40], query=True)
    assert [(p.job, p.start, p.stop) for p in lanes.take(0.0)[0]] == [(bulk, 0, 1), (query, 0, 1)]


def test_a_text_longer_than_the_budget_runs_alone() -> None:
    lanes: Lanes[None] = Lanes(BUDGET, 10**6)
    push(lanes, [500, 10])
    sizes = []
    while parts := lanes.take(0.0)[0]:
        sizes.append([p.tokens for p in parts])
    assert sizes == [[500], [10]]


def test_small_requests_overtake_large_ones_that_came_just_before_and_no_others() -> None:
    lanes: Lanes[None] = Lanes(BUDGET, 10**6)
    first = push(lanes, [100])
    lanes.done(lanes.take(0.0)[0], 0.1)
    assert lanes.rate == 1000 and first.closed
    large = push(lanes, [100] * 40, 10.0)  # 4 s of work
    soon = push(lanes, [100], 11.0)
    late = push(lanes, [100], 12.5)
    assert lanes.take(13.0)[0][0].job is soon
    assert lanes.take(13.0)[0][0].job is large
    assert not late.taken


def test_bulk_leaves_room_for_queries() -> None:
    lanes: Lanes[None] = Lanes(BUDGET, 800)
    push(lanes, [100] * 6)
    push(lanes, [100])
    with pytest.raises(OverloadedError, match="700 tokens are queued, no room for 2 more") as full:
        lanes.reserve(2, query=False)
    assert full.value.retry_after > 0
    push(lanes, [90], query=True)
    with pytest.raises(OverloadedError):
        lanes.reserve(11, query=True)


def test_a_request_larger_than_the_queue_is_the_callers_mistake() -> None:
    with pytest.raises(InputError, match="expected at most 800 tokens in a request, found 801"):
        Lanes(BUDGET, 800).reserve(801, query=False)
    lanes: Lanes[None] = Lanes(BUDGET, 800)
    lanes.reserve(800, query=False)  # an idle engine takes it
    lanes.release(800)
    assert lanes.tokens == 0


def test_what_would_wait_beyond_its_deadline_is_refused() -> None:
    lanes: Lanes[None] = Lanes(BUDGET, 10**6, timeout=2.0)
    push(lanes, [100])
    lanes.done(lanes.take(0.0)[0], 0.1)
    push(lanes, [100] * 19)  # 1.9 s at 1,000 tokens/s
    with pytest.raises(OverloadedError) as full:
        lanes.reserve(200, query=False)
    assert full.value.retry_after == pytest.approx(0.1)


def test_batches_are_short_while_queries_come() -> None:
    lanes: Lanes[None] = Lanes(10_000, 10**6)
    push(lanes, [1000] * 10)
    lanes.done(lanes.take(0.0)[0], 0.5)
    assert lanes.rate == 20_000
    now = 100.0
    push(lanes, [100] * 300, now)
    push(lanes, [20], now, query=True)
    parts, _ = lanes.take(now)
    assert sum(p.tokens for p in parts) <= 20_000 * SHORT_BATCH_SECONDS
    parts, _ = lanes.take(now + QUERY_MEMORY + 0.1)
    assert sum(p.tokens for p in parts) == 10_000


def test_batches_never_shrink_below_what_a_device_needs() -> None:
    lanes: Lanes[None] = Lanes(10_000, 10**6)
    push(lanes, [20], query=True)
    lanes.done(lanes.take(0.0)[0], 0.2)
    assert not lanes.rate, "a small batch says nothing yet"
    push(lanes, [6000], query=True)
    lanes.done(lanes.take(0.0)[0], 60)  # 100 tokens/s: a first batch that compiled something
    push(lanes, [64] * 100)
    parts, _ = lanes.take(0.1)
    assert sum(p.tokens for p in parts) == SHORT_BATCH
    for _ in range(200):
        lanes.done(parts, 0.01)
        push(lanes, [64] * 100)
        parts, _ = lanes.take(0.1)
    assert lanes.rate > 10_000, "the estimate recovers"
    assert sum(p.tokens for p in parts) > SHORT_BATCH


def test_full_batches_tell_the_rate_small_ones_only_that_it_is_higher() -> None:
    lanes: Lanes[None] = Lanes(BUDGET, 10**6)
    rates = []
    for tokens, seconds in ((100, 0.1), (100, 0.2), (10, 0.1), (10, 0.001)):
        push(lanes, [tokens], query=True)
        lanes.done(lanes.take(0.0)[0], seconds)
        rates.append(lanes.rate)
    falls = 1000 - 500 * (1 - math.exp(-0.2 / RATE_SECONDS))
    rises = falls + (10_000 - falls) * (1 - math.exp(-0.001 / RATE_SECONDS))
    assert rates == pytest.approx([1000, falls, falls, rises])


def test_cancelled_and_expired_work_is_dropped() -> None:
    lanes: Lanes[None] = Lanes(BUDGET, 10**6)
    running = push(lanes, [100, 100])
    cancelled = push(lanes, [50], query=True)
    expired = push(lanes, [50], deadline=1.0)
    parts, _ = lanes.take(0.0)
    assert parts[0].job is cancelled
    lanes.cancel(cancelled)
    lanes.cancel(running)
    assert lanes.tokens == 100  # in flight, and the one that will expire
    assert lanes.done(parts) == []
    late = push(lanes, [50], query=True)
    lanes.cancel(late)
    assert not lanes._queries, "what is cancelled is not kept"
    assert lanes.take(1.0) == ([], [expired]) and lanes.tokens == 0
    lanes.cancel(cancelled)
    assert lanes.tokens == 0
