"""An engine for servers: requests of any number of callers share batches, as the device is free.

Texts are tokenised in a pool, short ones at once. `lanes` decides what runs next. A worker thread
per device, a few on a CPU, asks it for a batch whenever the device can take one, so that a batch
forms of what has come while the one before ran, and nobody waits for a timer.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch

from m3fast.aio.batches import Batch, Request
from m3fast.aio.lanes import Job, Lanes, Part
from m3fast.aio.types import Answer, BatchRecord, Lane, Limits, Load, Stages
from m3fast.engine import pipeline
from m3fast.errors import (
    ComputeError,
    DeadlineError,
    DeviceMemoryError,
    EngineClosedError,
    InputError,
    NonFiniteError,
    OverloadedError,
)
from m3fast.inputs import check_iterable, check_positive, check_texts, windows
from m3fast.kernels import native
from m3fast.runner.base import HeadOptions, Outputs, dummy_texts
from m3fast.text.tokenizer import at_most
from m3fast.types import TokenIds

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from m3fast.engine.engine import Call, Engine
    from m3fast.inputs import Texts
    from m3fast.runner.cpu import Runner
    from m3fast.types import Embeddings

# Characters that are tokenised at once: a tenth of a millisecond, as much as a change of threads.
INLINE_CHARACTERS = 1024
# What counts as a query unless the caller says: what a person types.
QUERY_TEXTS, QUERY_TOKENS = 4, 256
# On a CPU: batches side by side. More would wait for each other in Python.
CPU_BATCHES = 4
# encode_iter: texts and characters per request, and requests on their way.
ITER_TEXTS, ITER_CHARACTERS, ITER_AHEAD = 256, 1 << 18, 4


class AsyncEngine:
    """Requests in, embeddings out, batched together. Use as `async with AsyncEngine(engine)`.

    Attributes:
        engine: the engine it drives, which can be used directly all the same.
        limits: as given.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        limits: Limits | None = None,
        on_batch: Callable[[BatchRecord], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing runs before `async with`.

        Args:
            on_batch: called in a worker thread after each batch.
            clock: seconds; for tests.

        Raises:
            InputError: a limit is not positive.
        """
        self.engine, self.limits = engine, limits or Limits()
        counts = ("queue_tokens", "request_texts", "text_characters", "request_characters")
        for name in (*counts, "output_bytes", "tokenizer_threads"):
            check_positive(name, getattr(self.limits, name))
        if self.limits.cpu_batches is not None:
            check_positive("cpu_batches", self.limits.cpu_batches)
        self._on_batch, self._clock = on_batch, clock
        runners = engine.runners
        self._threads = 0  # of a CPU, for its batches to share
        if engine.device.type == "cpu" and len(runners) == 1:
            self._threads = native.threads()
            most = self.limits.cpu_batches or CPU_BATCHES
            runners = runners * min(most, self._threads)
            engine.runner.share(len(runners))
        self._lanes: Lanes[Request] = Lanes(
            engine.token_budget, self.limits.queue_tokens, self.limits.timeout, len(runners)
        )
        self._wake = threading.Condition()  # and the lock of everything below
        self._open: set[Job[Request]] = set()
        self._state: Literal["new", "ready", "closing", "closed", "dead"] = "new"
        self._reason = ""
        self._workers = [_Worker(self, runner) for runner in runners]
        self._tokenizing: ThreadPoolExecutor | None = None
        self._calls = 0

    async def __aenter__(self) -> Self:
        """Start the workers.

        Raises:
            EngineClosedError: it has been started before.
        """
        if self._state != "new":
            raise EngineClosedError(f"engine: expected a new one, found one that is {self._state}")
        self._tokenizing = ThreadPoolExecutor(
            self.limits.tokenizer_threads, thread_name_prefix="m3fast-tokenize"
        )
        self._state = "ready"
        for worker in self._workers:
            worker.thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def encode(
        self,
        texts: str | Sequence[str | Sequence[int]],
        *,
        dense: bool | None = None,
        sparse: bool | None = None,
        colbert: bool | None = None,
        max_length: int | None = None,
        truncate: bool = True,
        truncate_dim: int | None = None,
        normalize: bool | None = None,
        prompt_name: str | None = None,
        lane: Lane = "auto",
        timeout: float | None = None,
    ) -> Embeddings:
        """As `Engine.encode`, batched with the other requests of the moment.

        Cancelling the call drops its texts that are not in a batch yet.

        Args:
            truncate: False to refuse texts longer than max_length instead of cutting them.
            lane: "query" goes ahead of "bulk"; "auto" by size.
            timeout: seconds; None for that of the limits.

        Raises:
            InputError: an argument is not as described.
            TextSizeError: texts whose tokens cost more than the limits allow.
            OverloadedError: no room in the queue; says when to come back.
            DeadlineError: the timeout passed.
            ComputeError: its batch failed; DeviceMemoryError: a text does not fit the device;
                NonFiniteError: the model gives nan or infinity for one of its texts.
            EngineClosedError: closing, closed or dead.
        """
        call = self.engine.call(
            dense, sparse, colbert, max_length, truncate_dim, normalize, prompt_name
        )
        answer = await self._answer(texts, call, truncate, lane, timeout)
        return answer.embeddings

    async def submit(
        self,
        texts: str | Sequence[str | Sequence[int]],
        *,
        dense: bool | None = None,
        sparse: bool | None = None,
        colbert: bool | None = None,
        max_length: int | None = None,
        truncate: bool = True,
        truncate_dim: int | None = None,
        normalize: bool | None = None,
        prompt_name: str | None = None,
        lane: Lane = "auto",
        timeout: float | None = None,
    ) -> Answer:
        """As `encode`, and how long each stage took."""
        call = self.engine.call(
            dense, sparse, colbert, max_length, truncate_dim, normalize, prompt_name
        )
        return await self._answer(texts, call, truncate, lane, timeout)

    async def encode_iter(
        self,
        texts: Iterable[str | Sequence[int]],
        *,
        dense: bool | None = None,
        sparse: bool | None = None,
        colbert: bool | None = None,
        max_length: int | None = None,
        prompt_name: str | None = None,
    ) -> AsyncIterator[Embeddings]:
        """Encode any number of texts as bulk, in order, a few windows ahead of the consumer.

        Where the queue is full it waits instead of failing.

        Args:
            texts: any iterable. It is read in the event loop, so it must not block.

        Yields:
            Embeddings of consecutive texts, up to 256 of them.
        """
        call = self.engine.call(dense, sparse, colbert, max_length, prompt_name=prompt_name)
        texts = check_iterable(texts)
        ahead: deque[asyncio.Task[Embeddings]] = deque()
        most = min(ITER_TEXTS, self.limits.request_texts)
        first = 0
        try:
            for window in windows(texts, call.max_length, most, ITER_CHARACTERS):
                ahead.append(asyncio.create_task(self._patient(window, call, first)))
                first += len(window)
                await asyncio.sleep(0)  # so that windows are queued in their order
                if len(ahead) == ITER_AHEAD:
                    yield await ahead.popleft()
            while ahead:
                yield await ahead.popleft()
        finally:
            for task in ahead:
                task.cancel()

    async def close(self, *, drain: bool = True) -> None:
        """Take no more requests, answer those admitted, or fail them, and stop the workers."""
        if self._state in ("new", "closed"):
            self._state = "closed"
            return
        with self._wake:
            if self._state == "ready":
                self._state = "closing"
        while drain and self._calls and self._state == "closing":
            await asyncio.sleep(0.005)
        with self._wake:
            if self._state != "dead":
                self._state = "closed"
            self._fail_all(EngineClosedError("engine: closed before this request was answered"))
            self._wake.notify_all()
        for worker in self._workers:
            # A batch on a stalled device never ends; its thread is a daemon.
            await asyncio.to_thread(worker.thread.join, 5.0)
        if self._tokenizing is not None:
            self._tokenizing.shutdown(wait=False, cancel_futures=True)

    @property
    def state(self) -> Literal["new", "ready", "closing", "closed", "dead"]:
        """dead: a worker has died, or a batch has run for longer than `limits.stall`."""
        return "dead" if self._stalled() else self._state

    @property
    def reason(self) -> str:
        """Why it is dead; else empty."""
        if (worker := self._stalled()) is not None:
            return f"a batch on {worker.runner.device} has not ended for {self.limits.stall:g} s"
        return self._reason

    @property
    def load(self) -> Load:
        """The queue as it is now."""
        with self._wake:
            now, waiting = self._clock(), list(self._lanes.jobs())
            return Load(
                tokens=self._lanes.tokens,
                texts=sum(len(job.lengths) - job.taken for job in waiting),
                requests=self._calls,
                oldest=max((now - job.arrival for job in waiting), default=0.0),
                tokens_per_second=self._lanes.rate,
            )

    async def _answer(
        self, texts: Any, call: Call, truncate: bool, lane: Lane, timeout: float | None
    ) -> Answer:
        if lane not in ("auto", "query", "bulk"):
            raise InputError(f"lane: expected 'auto', 'query' or 'bulk', found {lane!r}")
        if timeout is not None and not timeout > 0:
            raise InputError(f"timeout: expected seconds above 0, found {timeout!r}")
        given = check_texts(texts)
        if len(given) > self.limits.request_texts:
            raise InputError(
                f"texts: expected at most {self.limits.request_texts}, found {len(given)}"
            )
        if self.state != "ready":
            raise EngineClosedError(f"engine: it is {self.state} and takes no requests")
        seconds = self.limits.timeout if timeout is None else timeout
        self._calls += 1
        try:
            async with asyncio.timeout(seconds):
                checked = self.engine.tokenizer.check(given)
                return await self._run(checked, call, truncate, lane, seconds)
        except TimeoutError:
            raise DeadlineError(f"timeout: no answer within {seconds:g} s") from None
        finally:
            self._calls -= 1

    async def _run(
        self,
        texts: list[str | list[int]],
        call: Call,
        truncate: bool,
        lane: Lane,
        seconds: float | None,
    ) -> Answer:
        started = self._clock()
        sizes = [len(text) for text in texts]
        # At least so many tokens, so that a queue that is full is not asked to tokenise.
        guess = sum(min(size // 8, call.max_length) + 2 for size in sizes)
        small = len(texts) <= QUERY_TEXTS and sum(sizes) <= 4 * QUERY_TOKENS
        query = lane == "query" or (lane == "auto" and small)
        with self._wake:
            self._lanes.reserve(guess, query=query)
        job: Job[Request] | None = None
        try:
            tokens = await self._tokenize(texts, sum(sizes), call)
            self._check(tokens, call, truncate)
            request = Request(tokens, call, self.engine.window(tokens, call))
            lengths: list[int] = np.diff(request.tokens.offsets).tolist()
            deadline = float("inf") if seconds is None else started + seconds
            pushed = Job(lengths, query, deadline, request)
            with self._wake:
                if self._state not in ("ready", "closing"):
                    raise EngineClosedError(f"engine: it is {self._state} and takes no requests")
                reserved, guess = guess, 0
                self._lanes.push(pushed, reserved, self._clock())
                job = pushed
                if lengths:
                    self._open.add(job)
                    self._wake.notify()
            if not lengths:
                now = self._clock()
                return Answer(request.window.finish(), Stages(now - started, 0.0, 0.0))
            embeddings, done = await request.future
            return Answer(
                embeddings,
                Stages(job.arrival - started, request.began - job.arrival, done - request.began),
            )
        finally:
            with self._wake:
                if guess:
                    self._lanes.release(guess)
                if job is not None:
                    self._lanes.cancel(job)
                    self._open.discard(job)

    async def _tokenize(
        self, texts: list[str | list[int]], characters: int, call: Call
    ) -> TokenIds:
        encode, given = self._allowed, (texts, call.max_length, call.prompt)
        if characters <= INLINE_CHARACTERS or self._tokenizing is None:
            return encode(*given)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._tokenizing, encode, *given)

    def _allowed(self, *given: Any) -> TokenIds:
        """`Engine.tokenise`, unless that would keep others waiting for too long."""
        with at_most(self.limits.text_characters, self.limits.request_characters):
            return self.engine.tokenise(*given)

    def _check(self, tokens: TokenIds, call: Call, truncate: bool) -> None:
        """What only token ids show, while it concerns this request alone."""
        config = self.engine.config
        if not truncate and tokens.truncated.any():
            first = int(np.flatnonzero(tokens.truncated)[0])
            raise InputError(
                f"texts[{first}]: expected at most {call.max_length} tokens, found more"
            )
        if len(tokens.ids) and int(tokens.ids.max()) >= config.vocab_size:
            raise InputError(
                f"texts: expected token ids below {config.vocab_size}, "
                f"found {int(tokens.ids.max())}"
            )
        width = 0
        if call.outputs.colbert and self.engine.runner.weights.colbert is not None:
            width = self.engine.runner.weights.colbert.weight.shape[0]
        size = 4 * len(tokens.ids) * min(width, call.options.truncate_dim or width)
        if size > self.limits.output_bytes:
            raise InputError(
                f"colbert: expected at most {self.limits.output_bytes} bytes of vectors in a "
                f"request, found {size}; send fewer texts at a time"
            )

    async def _patient(self, texts: Texts, call: Call, first: int) -> Embeddings:
        while True:
            try:
                return (await self._answer(texts, call, True, "bulk", None)).embeddings
            except NonFiniteError as error:
                raise error.shifted(first) from None
            except OverloadedError as error:
                await asyncio.sleep(min(1.0, max(0.01, error.retry_after)))

    def _stalled(self) -> _Worker | None:
        now = self._clock()
        for worker in self._workers:
            if worker.flying and now - worker.since > self.limits.stall:
                return worker
        return None

    def next_batch(self, worker: _Worker) -> list[Part[Request]] | None:
        """What `worker` is to run next, waited for; None where it should first land a batch."""
        with self._wake:
            while self._state in ("ready", "closing"):
                now = self._clock()
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

    def _share(self) -> int:
        """Threads for the batch that begins now: of all if it is alone."""
        busy = sum(each.flying > 0 for each in self._workers)
        return max(1, self._threads // (len(self._workers) if self._lanes.waiting else busy))

    def landed(
        self, worker: _Worker, parts: list[Part[Request]], error: Exception | None, last: bool
    ) -> None:
        """Parts of a batch are computed and put in place, or `error` ended them."""
        with self._wake:
            now = self._clock()
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
            self._open.discard(job)
            job.payload.settle(job.payload.window.finish(), now)
        if self._on_batch is not None:
            tokens, texts = sum(p.tokens for p in parts), sum(p.stop - p.start for p in parts)
            jobs = len({id(p.job) for p in parts})
            name = None if error is None else type(error.__cause__ or error).__name__
            self._on_batch(BatchRecord(texts, tokens, jobs, seconds, name))

    def failed(self, job: Job[Request], error: Exception) -> None:
        """`error` ends this request alone, whatever else is in its batch."""
        with self._wake:
            self._fail(job, error)

    def died(self, worker: _Worker, error: BaseException) -> None:
        """A worker's thread is ending by an exception: nobody may wait for it any more."""
        with self._wake:
            self._state = "dead"
            self._reason = f"the worker of {worker.runner.device} died of {type(error).__name__}"
            failure = EngineClosedError(f"engine: {self._reason}")
            failure.__cause__ = error
            self._fail_all(failure)
            self._wake.notify_all()

    def _fail_all(self, error: Exception) -> None:
        for job in list(self._open):
            self._fail(job, error)

    def _fail(self, job: Job[Request], error: Exception) -> None:
        self._open.discard(job)
        self._lanes.cancel(job)
        job.payload.settle(error, self._clock())


class _Worker:
    """The thread that keeps one device busy.

    Attributes:
        flying: batches begun and not landed; since: when the device began on the oldest.
    """

    def __init__(self, owner: AsyncEngine, runner: Runner) -> None:
        self.owner, self.runner = owner, runner
        self.flying, self.since = 0, 0.0
        self.thread = threading.Thread(
            target=self._main, name=f"m3fast-{runner.device}", daemon=True
        )

    def _main(self) -> None:
        try:
            for task, result in pipeline.pump(self.runner, self._tasks()):
                batch: Batch = task.owner
                texts = np.arange(task.start, task.start + len(task))
                if isinstance(result, Exception):
                    self._failed(batch, texts, result)
                    continue
                for job, error in batch.put(task, result):
                    self.owner.failed(job, error)
                self._landed(batch, texts, None)
        except BaseException as error:
            self.owner.died(self, error)
            if not isinstance(error, Exception):
                raise

    def _tasks(self) -> Iterator[pipeline.Task | None]:
        while (parts := self.owner.next_batch(self)) is not None or self.flying:
            yield None if parts is None else Batch(parts).task()

    def _landed(
        self, batch: Batch, texts: NDArray[np.int64], error: Exception | None
    ) -> None:
        parts = batch.parts_of(texts)
        batch.missing -= len(texts)
        self.owner.landed(self, parts, error, batch.missing == 0)

    def _failed(self, batch: Batch, texts: NDArray[np.int64], cause: Exception) -> None:
        error: ComputeError
        if isinstance(cause, torch.OutOfMemoryError):
            tokens = int(np.diff(batch.tokens.offsets)[texts].sum())
            error = DeviceMemoryError(f"texts: one of {tokens} tokens does not fit the device")
        else:
            error = ComputeError(f"the batch failed: {type(cause).__name__}")
        error.__cause__ = cause
        self._landed(batch, texts, error)
        if not isinstance(error, DeviceMemoryError):
            # Some failures stay with a device for good. If it cannot do this it is dead.
            plain = HeadOptions("cls", True, None, ())
            self.runner.submit(dummy_texts(4, 4), Outputs(True, False, False), plain)()
