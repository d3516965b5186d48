"""An engine for servers: requests of any number of callers share batches, as the device is free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence

    from m3fast.engine import Engine
    from m3fast.types import Embeddings

Lane = Literal["auto", "query", "bulk"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What the engine takes on.

    Attributes:
        queue_tokens: most tokens admitted and not yet answered.
        timeout: seconds a request may take unless it says otherwise; None for no limit.
        request_texts: most texts per request.
        output_bytes: most bytes of vectors (float32) that one request may ask for.
        tokenizer_threads: threads that tokenise texts too long for the event loop.
        stall: seconds after which a batch that has not ended counts as a dead device.
    """

    queue_tokens: int = 1 << 20
    timeout: float | None = 60.0
    request_texts: int = 2048
    output_bytes: int = 256 << 20
    tokenizer_threads: int = 2
    stall: float = 300.0


@dataclass(frozen=True, slots=True)
class Stages:
    """Seconds that one request spent in each stage.

    Attributes:
        tokenize: making token ids.
        queue: from admission to the start of its first batch.
        compute: from there to the end of its last batch.
    """

    tokenize: float
    queue: float
    compute: float


@dataclass(frozen=True, slots=True)
class Answer:
    """Embeddings of one request and how long each stage took."""

    embeddings: Embeddings
    stages: Stages


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """One batch that was computed (or failed: then error is the exception's class name)."""

    texts: int
    tokens: int
    requests: int
    seconds: float
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """The queue as it is now.

    Attributes:
        tokens: admitted and not answered; texts: not yet in a batch; requests: not answered.
        oldest: seconds the oldest text that waits has waited; 0 for none.
        tokens_per_second: measured over the last batches; 0 before the first.
    """

    tokens: int
    texts: int
    requests: int
    oldest: float
    tokens_per_second: float


class AsyncEngine:
    """Requests in, embeddings out, batched together. Use as `async with AsyncEngine(engine)`.

    Attributes:
        engine: the engine it drives; its `max_length`, `outputs`, `config`, `tokenizer` hold.
        limits: as given.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        limits: Limits | None = None,
        on_batch: Callable[[BatchRecord], None] | None = None,
    ) -> None:
        """on_batch is called in a worker thread after each batch."""
        raise NotImplementedError

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_: object) -> None: ...

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
        lane: Lane = "auto",
        timeout: float | None = None,
    ) -> Embeddings:
        """As `Engine.encode`, batched with the other requests of the moment.

        Args:
            truncate: False to refuse texts longer than max_length instead of cutting them.
            normalize: L2-normalise dense and colbert vectors; None for the engine's own.
            lane: "query" goes ahead of "bulk"; "auto" by size.
            timeout: seconds; None for that of the limits.

        Raises:
            InputError: an argument is not as described.
            OverloadedError: no room in the queue; says when to come back.
            DeadlineError: the timeout passed.
            ComputeError: its batch failed; DeviceMemoryError: a text does not fit the device.
            EngineClosedError: closing, closed or dead.
        """
        raise NotImplementedError

    async def submit(self, texts: str | Sequence[str | Sequence[int]], **options: object) -> Answer:
        """As `encode`, and how long each stage took."""
        raise NotImplementedError

    def encode_iter(
        self, texts: Iterable[str], **options: object
    ) -> AsyncIterator[Embeddings]:
        raise NotImplementedError

    async def close(self, *, drain: bool = True) -> None:
        """Take no more requests; answer those admitted (drain) or fail them; stop the workers."""

    @property
    def state(self) -> Literal["new", "ready", "closing", "closed", "dead"]:
        """dead: a worker has died or a batch has stalled; every request fails at once."""
        raise NotImplementedError

    @property
    def reason(self) -> str:
        """Why it is dead, without internals; else empty."""
        raise NotImplementedError

    @property
    def load(self) -> Load:
        raise NotImplementedError
