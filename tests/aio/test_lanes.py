"""The queue: whatever comes in whatever order, budgets hold and every text runs exactly once."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3fast import InputError
from m3fast.aio.lanes import (
    BULK_TURN,
    QUERY_MEMORY,
    RATE_SECONDS,
    SHORT_BATCH,
    SHORT_BATCH_SECONDS,
    Job,
    Lanes,
)
from m3fast.errors import OverloadedError

BUDGET = 100
FAR = math.inf

lengths = st.lists(st.integers(2, 140), min_size=1, max_size=8).map(
    lambda sizes: sorted(sizes, reverse=True)
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("push"), lengths, st.booleans(), st.sampled_from([FAR, 0.5, 3.0])),
        st.tuples(st.just("take")),
        st.tuples(st.just("done"), st.integers(0, 3)),
        st.tuples(st.just("cancel"), st.integers(0, 20)),
        st.tuples(st.just("wait"), st.sampled_from([0.01, 0.4, 2.0, 10.0])),
    ),
    max_size=80,
)


def job(sizes, *, query=False, deadline=FAR) -> Job[None]:
    return Job(sizes, query, deadline, None)


def push(lanes, sizes, now=0.0, *, query=False, deadline=FAR) -> Job[None]:
    pushed = job(sizes, query=query, deadline=deadline)
    lanes.reserve(2, query=query)
    lanes.push(pushed, 2, now)
    return pushed


class World:
    """A queue, its devices, and a second book of what must be true."""

    def __init__(self, queue_tokens: int) -> None:
        self.lanes: Lanes[None] = Lanes(BUDGET, queue_tokens)
        self.queue_tokens, self.now = queue_tokens, 0.0
        self.jobs: list[Job[None]] = []
        self.runs: dict[int, list[int]] = {}
        self.flying = []
        self.answers: dict[int, int] = {}
        self.over: set[int] = set()  # cancelled or expired
        self.refused = 0

    def push(self, sizes, query, patience) -> None:
        new = job(sizes, query=query, deadline=self.now + patience)
        before = self.lanes.tokens
        try:
            self.lanes.reserve(2, query=query)
        except OverloadedError as error:
            self.refused += 1
            assert error.retry_after > 0 and self.lanes.tokens == before
            return
        try:
            self.lanes.push(new, 2, self.now)
        except (OverloadedError, InputError):
            self.refused += 1
            assert self.lanes.tokens == before
            return
        self.jobs.append(new)
        self.runs[id(new)] = []

    def take(self):
        parts, expired = self.lanes.take(self.now)
        for gone in expired:
            assert gone.deadline <= self.now and gone.closed
            self.over.add(id(gone))
        tokens = texts = 0
        for part in parts:
            assert id(part.job) not in self.over and part.job.deadline > self.now
            assert part.tokens == sum(part.job.lengths[part.start : part.stop])
            self.runs[id(part.job)] += range(part.start, part.stop)
            tokens, texts = tokens + part.tokens, texts + part.stop - part.start
        assert tokens <= BUDGET or texts == 1
        if parts:
            self.flying.append(parts)
        return parts

    def done(self, index) -> None:
        if self.flying:
            parts = self.flying.pop(index % len(self.flying))
            for over in self.lanes.done(parts, 0.01):
                self.answers[id(over)] = self.answers.get(id(over), 0) + 1

    def cancel(self, index) -> None:
        if self.jobs:
            gone = self.jobs[index % len(self.jobs)]
            if id(gone) not in self.answers:
                self.over.add(id(gone))
            self.lanes.cancel(gone)

    def check(self) -> None:
        held = sum(part.tokens for parts in self.flying for part in parts)
        for each in self.jobs:
            if not each.closed:
                held += sum(each.lengths[each.taken :])
        assert self.lanes.tokens == held <= self.queue_tokens
        for each in self.jobs:
            run = self.runs[id(each)]
            assert run == list(range(len(run)))  # in order, none twice
        waiting = {id(each) for each in self.lanes.jobs()}
        assert waiting == {
            id(e) for e in self.jobs if not e.closed and len(self.runs[id(e)]) < len(e.lengths)
        }


@settings(max_examples=300)
@given(steps, st.sampled_from([300, 2000, 10**6]))
def test_every_text_runs_once_within_every_limit(script, queue_tokens) -> None:
    world = World(queue_tokens)
    for name, *arguments in script:
        if name == "wait":
            world.now += arguments[0]
        else:
            getattr(world, name)(*arguments)
        world.check()
    while world.take() or world.flying:
        world.done(0)
        world.check()
    assert world.lanes.tokens == 0
    for each in world.jobs:
        if id(each) in world.over:
            assert id(each) not in world.answers
        else:
            assert world.answers[id(each)] == 1
            assert len(world.runs[id(each)]) == len(each.lengths)


@settings(max_examples=100)
@given(st.lists(st.tuples(lengths, st.booleans()), min_size=2, max_size=30), st.data())
def test_nothing_starves(arrivals, data) -> None:
    """With new queries and new bulk before every batch, the oldest of both still get on."""
    lanes: Lanes[None] = Lanes(BUDGET, 10**9)
    query = push(lanes, [30], query=True)
    bulk = push(lanes, [60, 60, 60])
    batches = 0
    while bulk.answered < 3:
        for sizes, is_query in arrivals:
            push(lanes, sizes, batches * 0.01, query=is_query)
        parts, _ = lanes.take(batches * 0.01)
        lanes.done(parts, None)
        batches += 1
        assert query.answered == 1, "a query waits for one batch"
        assert bulk.answered >= batches // BULK_TURN
    assert batches <= 3 * BULK_TURN


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
