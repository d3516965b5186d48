"""Which texts of which requests run next. Pure Python: no threads, the caller's clock.

Two lanes. Queries go first, in order of arrival. Bulk fills what they leave of a batch, a request
with less to do ahead of one with more that came a little earlier. Neither can starve the other: a
query waits for one batch at most, and every fourth batch begins with bulk.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from m3fast.errors import InputError, OverloadedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

P = TypeVar("P")

# While queries come, a batch is no longer than this, unless that is fewer tokens than
# SHORT_BATCH: what a query waits for is the batch before it.
SHORT_BATCH_SECONDS, SHORT_BATCH = 0.05, 256
QUERY_MEMORY = 5.0  # seconds since the last query for which they count as coming
BULK_TURN = 4  # a batch in so many begins with bulk
RATE_SECONDS = 0.5  # of work over which the speed is averaged
# The last eighth of the queue is for queries only.
BULK_SHARE = 7 / 8
# A request overtakes those that came up to this share of its rival's own run time before it.
OVERTAKE = 0.5


@dataclass(eq=False, slots=True)
class Job(Generic[P]):
    """The texts of one request.

    Attributes:
        lengths: tokens of each text, in the order in which they are to run.
        query: whether it goes in the query lane.
        deadline: instant after which nothing of it is begun.
        payload: the caller's own.
        arrival, rank: set by `Lanes.push`.
        taken: texts that have been given out; answered: texts whose batch is done.
        left: tokens that have not been given out.
        closed: cancelled, expired or answered.
    """

    lengths: Sequence[int]
    query: bool
    deadline: float
    payload: P
    arrival: float = 0.0
    rank: float = 0.0
    taken: int = 0
    answered: int = 0
    closed: bool = False
    left: int = 0

    @property
    def waiting(self) -> bool:
        return not self.closed and self.taken < len(self.lengths)


@dataclass(frozen=True, slots=True)
class Part(Generic[P]):
    """Texts start to stop of a job, in one batch."""

    job: Job[P]
    start: int
    stop: int
    tokens: int


class Lanes(Generic[P]):
    """The queue: admits by tokens, gives out batches. Not thread-safe: the caller locks.

    Attributes:
        tokens: reserved or admitted, and not yet answered.
        rate: tokens per second, averaged over late full batches; 0 before the first, and
            then nothing is refused for its sake.
    """

    def __init__(
        self,
        token_budget: int,
        queue_tokens: int,
        timeout: float | None = None,
        batches: int = 1,
    ) -> None:
        """A batch has at most token_budget tokens, or one longer text.

        Args:
            batches: that are computed side by side.
            queue_tokens: most tokens in `tokens`.
            timeout: seconds of waiting after which a request is of no use, if there is such a
                limit: bulk that would wait for longer is not admitted.
        """
        self.token_budget, self.queue_tokens, self.timeout = token_budget, queue_tokens, timeout
        self._batches = batches
        self.tokens = 0
        self.rate = 0.0
        self._queries: deque[Job[P]] = deque()
        self._bulk: list[tuple[float, int, Job[P]]] = []
        self._arrivals = 0
        self._without_bulk = 0
        self._last_query = -math.inf

    def reserve(self, tokens: int, *, query: bool) -> None:
        """Hold room for a request whose texts are still to be tokenised.

        Raises:
            InputError: more than the queue ever holds.
            OverloadedError: no room now.
        """
        if tokens > self.queue_tokens:
            raise InputError(
                f"texts: expected at most {self.queue_tokens} tokens in a request, found {tokens}"
            )
        limit = float(self.queue_tokens)
        if not query:
            limit *= BULK_SHARE
            if self.timeout is not None and self.rate:
                limit = min(limit, self.rate * self.timeout)
        # An idle engine takes anything that the queue can hold.
        if self.tokens and self.tokens + tokens > limit:
            over = self.tokens + tokens - limit
            wait = over / self.rate if self.rate else 1.0
            raise OverloadedError(
                f"overloaded: {self.tokens} tokens are queued, no room for {tokens} more now", wait
            )
        self.tokens += tokens

    def release(self, tokens: int) -> None:
        """Give back what `reserve` held."""
        self.tokens -= tokens

    def push(self, job: Job[P], reserved: int, now: float) -> None:
        """Queue a job in place of its reservation, which is given up in any case.

        Raises:
            InputError, OverloadedError: as `reserve`, if it has more tokens than were reserved.
        """
        total = sum(job.lengths)
        self.release(reserved)
        if total > reserved:
            self.reserve(total, query=job.query)
        else:
            self.tokens += total
        job.arrival, job.left = now, total
        if job.query:
            self._last_query = now
            self._queries.append(job)
        else:
            job.rank = now + (OVERTAKE * total / self.rate if self.rate else 0.0)
            self._arrivals += 1
            heapq.heappush(self._bulk, (job.rank, self._arrivals, job))

    def cancel(self, job: Job[P]) -> None:
        """Drop what of a job has not been given out. Nothing happens to one that is over."""
        if job.closed:
            return
        if job.waiting:
            if job.query:
                self._queries.remove(job)
            else:
                self._bulk = [entry for entry in self._bulk if entry[2] is not job]
                heapq.heapify(self._bulk)
        self._close(job)

    def take(self, now: float) -> tuple[list[Part[P]], list[Job[P]]]:
        """The next batch, empty if nothing waits, and jobs whose deadline has passed instead."""
        expired: list[Job[P]] = []
        parts: list[Part[P]] = []
        room = self._budget(now)
        bulk_waits = self._head_of_bulk(now, expired) is not None
        if bulk_waits and self._without_bulk >= BULK_TURN - 1:
            room -= self._give(self._head_of_bulk(now, expired), room, parts, most=1)
        for head in (self._head_of_queries, self._head_of_bulk):
            while (job := head(now, expired)) is not None:
                room -= self._give(job, room, parts)
                if job.waiting:
                    break
        has_bulk = any(not part.job.query for part in parts)
        self._without_bulk = self._without_bulk + 1 if bulk_waits and not has_bulk else 0
        return parts, expired

    def done(self, parts: Sequence[Part[P]], seconds: float | None = None) -> list[Job[P]]:
        """Take note of a batch that ended, well or not; the jobs that are answered with it.

        Args:
            seconds: how long it took, divided by the batches that ran side by side; None where
                that says nothing of the speed.
        """
        answered: list[Job[P]] = []
        tokens = sum(part.tokens for part in parts)
        self.tokens -= tokens
        for part in parts:
            job = part.job
            job.answered += part.stop - part.start
            if not job.closed and job.answered == len(job.lengths):
                self._close(job)
                answered.append(job)
        if seconds and tokens:
            rate = tokens / seconds
            # Small batches say how long a launch takes, not how fast the device is: at most that it
            # is faster than was thought.
            if 2 * tokens >= self._short_batch() or 0 < self.rate < rate:
                share = 1 - math.exp(-seconds / RATE_SECONDS) if self.rate else 1.0
                self.rate += (rate - self.rate) * share
        return answered

    @property
    def waiting(self) -> bool:
        """Whether `take` may have something to give."""
        return bool(self._queries or self._bulk)

    def jobs(self) -> Iterator[Job[P]]:
        """Every job with texts that wait."""
        every = (*self._queries, *(job for _, _, job in self._bulk))
        return (job for job in every if job.waiting)

    def _budget(self, now: float) -> int:
        return self.token_budget if now - self._last_query > QUERY_MEMORY else self._short_batch()

    def _short_batch(self) -> int:
        if not self.rate:
            return self.token_budget
        tokens = int(self.rate * SHORT_BATCH_SECONDS / self._batches)
        return min(self.token_budget, max(SHORT_BATCH, tokens))

    def _give(
        self, job: Job[P] | None, room: int, parts: list[Part[P]], most: int | None = None
    ) -> int:
        """Add as many texts of a job to the batch as there is room for; their tokens."""
        if job is None:
            return 0
        start = stop = job.taken
        end = len(job.lengths) if most is None else min(len(job.lengths), start + most)
        tokens = 0
        while stop < end:
            size = job.lengths[stop]
            if tokens + size > room and (parts or stop > start):
                break
            tokens += size
            stop += 1
        if stop > start:
            parts.append(Part(job, start, stop, tokens))
            job.taken = stop
            job.left -= tokens
        return tokens

    def _head_of_queries(self, now: float, expired: list[Job[P]]) -> Job[P] | None:
        while self._queries:
            job = self._queries[0]
            if self._is_due(job, now, expired):
                return job
            self._queries.popleft()
        return None

    def _head_of_bulk(self, now: float, expired: list[Job[P]]) -> Job[P] | None:
        while self._bulk:
            job = self._bulk[0][2]
            if self._is_due(job, now, expired):
                return job
            heapq.heappop(self._bulk)
        return None

    def _is_due(self, job: Job[P], now: float, expired: list[Job[P]]) -> bool:
        if job.waiting and job.deadline <= now:
            self._close(job)
            expired.append(job)
        return job.waiting

    def _close(self, job: Job[P]) -> None:
        job.closed = True
        self.tokens -= job.left
        job.left = 0
