"""What an async engine is told and what it tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from m3fast.types import Embeddings

Lane = Literal["auto", "query", "bulk"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What the engine takes on.

    Attributes:
        queue_tokens: most tokens admitted and not yet answered.
        timeout: seconds a request may take unless it says otherwise; None for no limit.
        request_texts: most texts per request.
        text_characters: most normalised characters tokenised to find where a text can be cut; at
            least 64 for each token of max_length.
        request_characters: most normalised characters tokenised for one request.
        output_bytes: most bytes of vectors (float32) that one request may ask for.
        cpu_batches: most batches computed side by side on a CPU, each with its share of the
            threads: while many wait that is faster than all threads on one. None for up to 4.
        tokenizer_threads: threads that tokenise texts too long for the event loop.
        stall: seconds after which a batch that has not ended counts as a dead device.
    """

    queue_tokens: int = 1 << 20
    timeout: float | None = 60.0
    request_texts: int = 2048
    text_characters: int = 1 << 19
    request_characters: int = 10 << 20
    output_bytes: int = 256 << 20
    cpu_batches: int | None = None
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
