"""`AsyncEngine`: requests of any number of callers share batches, as the device is free.

Texts are tokenized in a pool, short ones at once. `lanes` decides what runs next. A worker thread
per device, a few on a CPU, asks it for a batch whenever the device can take one, so that a batch
forms of what has come while the one before ran, and nobody waits for a timer.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self, Unpack

from m3fast.aio.admission import check_lane, check_limits, check_tokens
from m3fast.aio.batches import Request
from m3fast.aio.dispatch import Dispatcher
from m3fast.aio.lanes import Job
from m3fast.aio.types import Answer, BatchRecord, Lane, Limits, Load, Stages
from m3fast.engine.assembly import Assembler
from m3fast.engine.options import EncodeOptions, check_keywords, lists_options
from m3fast.errors import DeadlineError, InputError, NonFiniteError, OverloadedError
from m3fast.inputs import check_iterable, check_texts, windows
from m3fast.text.allowance import at_most

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence

    from m3fast.aio.dispatch import State
    from m3fast.engine.engine import Engine
    from m3fast.engine.options import Call
    from m3fast.inputs import CheckedTexts, Texts
    from m3fast.types import Embeddings, TokenIds

# Characters that are tokenized at once: a tenth of a millisecond, as much as a change of threads.
INLINE_CHARACTERS = 1024
# What counts as a query unless the caller says: what a person types.
QUERY_TEXTS, QUERY_TOKENS = 4, 256
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
        check_limits(self.limits)
        self._clock = clock
        self._dispatcher = Dispatcher(engine, self.limits, on_batch, clock)
        self._tokenizing: ThreadPoolExecutor | None = None
        self._calls = 0

    async def __aenter__(self) -> Self:
        """Start the workers.

        Raises:
            EngineClosedError: it has been started before.
        """
        self._dispatcher.start()
        self._tokenizing = ThreadPoolExecutor(
            self.limits.tokenizer_threads, thread_name_prefix="m3fast-tokenize"
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @lists_options
    async def encode(
        self,
        texts: str | Sequence[str | Sequence[int]],
        *,
        truncate: bool = True,
        lane: Lane = "auto",
        timeout: float | None = None,
        **options: Unpack[EncodeOptions],
    ) -> Embeddings:
        """As `Engine.encode`, batched with the other requests of the moment.

        Cancelling the call drops its texts that are not in a batch yet.

        Args:
            truncate: False to refuse texts longer than max_length instead of cutting them.
            lane: "query" goes ahead of "bulk"; "auto" by size.
            timeout: seconds; None for that of the limits.
            options: see `m3fast.engine.options.EncodeOptions`.

        Raises:
            InputError: an argument is not as described.
            TextSizeError: texts whose tokens cost more than the limits allow.
            OverloadedError: no room in the queue; says when to come back.
            DeadlineError: the timeout passed.
            ComputeError: its batch failed; DeviceMemoryError: a text does not fit the device;
                NonFiniteError: the model gives nan or infinity for one of its texts.
            EngineClosedError: closing, closed or dead.
        """
        call = self.engine.call("AsyncEngine.encode", **options)
        return (await self._answer(texts, call, truncate, lane, timeout)).embeddings

    @lists_options
    async def submit(
        self,
        texts: str | Sequence[str | Sequence[int]],
        *,
        truncate: bool = True,
        lane: Lane = "auto",
        timeout: float | None = None,
        **options: Unpack[EncodeOptions],
    ) -> Answer:
        """As `encode`, and how long each stage took."""
        call = self.engine.call("AsyncEngine.submit", **options)
        return await self._answer(texts, call, truncate, lane, timeout)

    @lists_options
    def encode_iter(
        self, texts: Iterable[str | Sequence[int]], **options: Unpack[EncodeOptions]
    ) -> AsyncIterator[Embeddings]:
        """Encode any number of texts as bulk, in order, a few windows ahead of the consumer.

        Where the queue is full it waits instead of failing.

        Args:
            texts: any iterable. It is read in the event loop, so it must not block.

        Yields:
            Embeddings of consecutive texts, up to 256 of them.
        """
        check_keywords("AsyncEngine.encode_iter", options)
        return self._encode_iter(texts, options)

    async def _encode_iter(self, texts: Any, options: EncodeOptions) -> AsyncIterator[Embeddings]:
        call = self.engine.call(**options)
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
        if not self._dispatcher.begin_to_close():
            return
        while drain and self._calls and self._dispatcher.closing:
            await asyncio.sleep(0.005)
        await self._dispatcher.close()
        if self._tokenizing is not None:
            self._tokenizing.shutdown(wait=False, cancel_futures=True)

    @property
    def state(self) -> State:
        """dead: a worker has died, or a batch has run for longer than `limits.stall`."""
        return self._dispatcher.state

    @property
    def reason(self) -> str:
        """Why it is dead; else empty."""
        return self._dispatcher.reason

    @property
    def load(self) -> Load:
        """The queue as it is now."""
        return self._dispatcher.load(self._calls)

    async def _answer(
        self, texts: Any, call: Call, truncate: bool, lane: Lane, timeout: float | None
    ) -> Answer:
        check_lane(lane)
        if timeout is not None and not timeout > 0:
            raise InputError(f"timeout: expected seconds above 0, found {timeout!r}")
        given = check_texts(texts)
        if len(given) > self.limits.request_texts:
            raise InputError(
                f"texts: expected at most {self.limits.request_texts}, found {len(given)}"
            )
        self._dispatcher.check_ready()
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
        self, texts: CheckedTexts, call: Call, truncate: bool, lane: Lane, seconds: float | None
    ) -> Answer:
        started = self._clock()
        sizes = [len(text) for text in texts]
        small = len(texts) <= QUERY_TEXTS and sum(sizes) <= 4 * QUERY_TOKENS
        query = lane == "query" or (lane == "auto" and small)
        # At least so many tokens, so that a queue that is full is not asked to tokenize.
        reserved = sum(min(size // 8, call.max_length) + 2 for size in sizes)
        self._dispatcher.reserve(reserved, query=query)
        job: Job[Request] | None = None
        try:
            tokens = await self._tokenize(texts, sum(sizes), call)
            check_tokens(tokens, call, self.engine, self.limits, truncate=truncate)
            assembler = Assembler.for_call(self.engine.runner, tokens, call)
            request = Request(assembler, call)
            deadline = float("inf") if seconds is None else started + seconds
            pushed = Job(request.lengths, query, deadline, request)
            guess, reserved = reserved, 0
            self._dispatcher.push(pushed, guess)
            job = pushed
            if not request.lengths:
                now = self._clock()
                return Answer(assembler.finish(), Stages(now - started, 0.0, 0.0))
            embeddings, done = await request.future
            return Answer(
                embeddings,
                Stages(job.arrival - started, request.began - job.arrival, done - request.began),
            )
        finally:
            if reserved:
                self._dispatcher.release(reserved)
            if job is not None:
                self._dispatcher.withdraw(job)

    async def _tokenize(self, texts: CheckedTexts, characters: int, call: Call) -> TokenIds:
        encode, given = self._allowed, (texts, call.max_length, call.prompt)
        if characters <= INLINE_CHARACTERS or self._tokenizing is None:
            return encode(*given)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._tokenizing, encode, *given)

    def _allowed(self, *given: Any) -> TokenIds:
        """`Engine.tokenize`, unless that would keep others waiting for too long."""
        with at_most(self.limits.text_characters, self.limits.request_characters):
            return self.engine.tokenize(*given)

    async def _patient(self, texts: Texts, call: Call, first: int) -> Embeddings:
        while True:
            try:
                return (await self._answer(texts, call, True, "bulk", None)).embeddings
            except NonFiniteError as error:
                raise error.shifted(first) from None
            except OverloadedError as error:
                await asyncio.sleep(min(1.0, max(0.01, error.retry_after)))
