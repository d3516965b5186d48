"""The queue and the workers that empty it: who runs what next, and who hears of the end."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Literal

from m3fast.aio.lanes import Lanes
from m3fast.aio.types import BatchRecord, Load
from m3fast.aio.worker import Worker
from m3fast.errors import DeadlineError, EngineClosedError
from m3fast.kernels import native

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from m3fast.aio.batches import Request
    from m3fast.aio.lanes import Job, Part
    from m3fast.aio.types import Limits
    from m3fast.engine.engine import Engine

State = Literal["new", "ready", "closing", "closed", "dead"]

# On a CPU: batches side by side. More would wait for each other in Python.
CPU_BATCHES = 4


class Dispatcher:
    """Jobs in, each of them answered or failed once. Safe to use from any thread.

    Attributes:
        jobs: admitted and not yet answered; clock: seconds.
    """

    def __init__(
        self,
        engine: Engine,
        limits: Limits,
        on_batch: Callable[[BatchRecord], None] | None,
        clock: Callable[[], float],
    ) -> None:
        """Nothing runs before `start`."""
        self.clock, self._limits, self._on_batch = clock, limits, on_batch
        runners = engine.runners
        self._threads = 0  # of a CPU, for its batches to share
        if engine.device.type == "cpu" and len(runners) == 1:
            self._threads = native.threads()
            most = limits.cpu_batches or CPU_BATCHES
            runners = runners * min(most, self._threads)
            engine.runner.share(len(runners))
        self._lanes: Lanes[Request] = Lanes(
            engine.token_budget, limits.queue_tokens, limits.timeout, len(runners)
        )
        self._wake = threading.Condition()  # and the lock of everything below
        self.jobs: set[Job[Request]] = set()
        self._state: State = "new"
        self._reason = ""
        self._workers = [Worker(self, runner) for runner in runners]

    def start(self) -> None:
        """Start the workers.

        Raises:
            EngineClosedError: it has been started before.
        """
        if self._state != "new":
            raise EngineClosedError(f"engine: expected a new one, found one that is {self._state}")
        self._state = "ready"
        for worker in self._workers:
            worker.thread.start()

    def begin_to_close(self) -> bool:
        """Take no more requests; False if nothing was ever started, or all has ended."""
        with self._wake:
            if self._state in ("new", "closed"):
                self._state = "closed"
                return False
            if self._state == "ready":
                self._state = "closing"
        return True

    async def close(self) -> None:
        """Fail the jobs that are left and end the workers."""
        with self._wake:
            if self._state != "dead":
                self._state = "closed"
            self._fail_all(EngineClosedError("engine: closed before this request was answered"))
            self._wake.notify_all()
        for worker in self._workers:
            # A batch on a stalled device never ends; its thread is a daemon.
            await asyncio.to_thread(worker.thread.join, 5.0)

    @property
    def state(self) -> State:
        """dead: a worker has died, or a batch has run for longer than `limits.stall`."""
        return "dead" if self._stalled() else self._state

    @property
    def closing(self) -> bool:
        """Whether it takes no requests any more and still answers those that it has."""
        return self._state == "closing"

    def check_ready(self) -> None:
        """EngineClosedError unless it takes requests."""
        if (state := self.state) != "ready":
            raise EngineClosedError(f"engine: it is {state} and takes no requests")

    @property
    def reason(self) -> str:
        """Why it is dead; else empty."""
        if (worker := self._stalled()) is not None:
            return f"a batch on {worker.runner.device} has not ended for {self._limits.stall:g} s"
        return self._reason

    def load(self, requests: int) -> Load:
        """The queue as it is now, of so many requests."""
        with self._wake:
            now, waiting = self.clock(), list(self._lanes.jobs())
            return Load(
                tokens=self._lanes.tokens,
                texts=sum(len(job.lengths) - job.taken for job in waiting),
                requests=requests,
                oldest=max((now - job.arrival for job in waiting), default=0.0),
                tokens_per_second=self._lanes.rate,
            )

    # For requests ---------------------------------------------------------------------------

    def reserve(self, tokens: int, *, query: bool) -> None:
        """Hold room in the queue; raises as `Lanes.reserve`."""
        with self._wake:
            self._lanes.reserve(tokens, query=query)

    def release(self, tokens: int) -> None:
        """Give back what `reserve` held."""
        with self._wake:
            self._lanes.release(tokens)

    def push(self, job: Job[Request], reserved: int) -> None:
        """Queue a job in place of its reservation, which is given up in any case.

        Raises:
            EngineClosedError: it takes no jobs any more; else as `Lanes.push`.
        """
        with self._wake:
            if self._state not in ("ready", "closing"):
                self._lanes.release(reserved)
                raise EngineClosedError(f"engine: it is {self._state} and takes no requests")
            self._lanes.push(job, reserved, self.clock())
            if job.lengths:
                self.jobs.add(job)
                self._wake.notify()

    def withdraw(self, job: Job[Request]) -> None:
        """Run no more of a job. Nothing happens to one that is over."""
        with self._wake:
            self._lanes.cancel(job)
            self.jobs.discard(job)

    # For workers ----------------------------------------------------------------------------

    def next_batch(self, worker: Worker) -> list[Part[Request]] | None:
        """What `worker` is to run next, waited for; None where it should first land a batch."""
        with self._wake:
            while self._state in ("ready", "closing"):
                now = self.clock()
                parts, expired = self._lanes.take(now)
                for job in expired:
                    self._fail(job, DeadlineError("timeout: it passed in the queue"))
                if parts:
                    for part in parts:
                        if part.start == 0:
                            part.job.payload.began = now
                    if not worker.flying:
                        worker.since = now
                    worker.flying += 1
                    if self._threads:
                        native.limit_threads(self._share())
                    return parts
                if worker.flying:
                    return None
                self._wake.wait()
        return None

    def landed(
        self, worker: Worker, parts: Sequence[Part[Request]], error: Exception | None, last: bool
    ) -> None:
        """Parts of a batch are computed and put in place, or `error` ended them."""
        with self._wake:
            now = self.clock()
            seconds = now - worker.since
            side_by_side = sum(each.flying > 0 for each in self._workers)
            if error is not None:
                for job in {part.job: None for part in parts}:
                    self._fail(job, error)
            answered = self._lanes.done(parts, None if error else seconds / side_by_side)
            if last:
                worker.flying -= 1
                worker.since = now
        for job in answered:
            self.jobs.discard(job)
            job.payload.settle(job.payload.assembler.finish(), now)
        if self._on_batch is not None:
            tokens, texts = sum(p.tokens for p in parts), sum(p.stop - p.start for p in parts)
            jobs = len({id(p.job) for p in parts})
            name = None if error is None else type(error.__cause__ or error).__name__
            self._on_batch(BatchRecord(texts, tokens, jobs, seconds, name))

    def failed(self, job: Job[Request], error: Exception) -> None:
        """`error` ends this request alone, whatever else is in its batch."""
        with self._wake:
            self._fail(job, error)

    def died(self, worker: Worker, error: BaseException) -> None:
        """A worker's thread is ending by an exception: nobody may wait for it any more."""
        with self._wake:
            self._state = "dead"
            self._reason = f"the worker of {worker.runner.device} died of {type(error).__name__}"
            failure = EngineClosedError(f"engine: {self._reason}")
            failure.__cause__ = error
            self._fail_all(failure)
            self._wake.notify_all()

    def _stalled(self) -> Worker | None:
        now = self.clock()
        for worker in self._workers:
            if worker.flying and now - worker.since > self._limits.stall:
                return worker
        return None

    def _share(self) -> int:
        """Threads for the batch that begins now: of all if it is alone."""
        busy = sum(each.flying > 0 for each in self._workers)
        return max(1, self._threads // (len(self._workers) if self._lanes.waiting else busy))

    def _fail_all(self, error: Exception) -> None:
        for job in list(self.jobs):
            self._fail(job, error)

    def _fail(self, job: Job[Request], error: Exception) -> None:
        self.jobs.discard(job)
        self._lanes.cancel(job)
        job.payload.settle(error, self.clock())
