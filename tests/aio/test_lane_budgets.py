"""The queue: whatever comes in whatever order, budgets hold and every text runs exactly once."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from lanejobs import BUDGET, FAR, job, push

from m3fast import InputError
from m3fast.aio.lanes import (
    BULK_TURN,
    Job,
    Lanes,
)
from m3fast.errors import OverloadedError

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
