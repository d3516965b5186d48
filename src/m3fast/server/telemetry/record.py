"""`RequestRecord`: the facts of one request, of which metrics, logs and traces are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from m3fast.aio.engine import Stages


@dataclass(slots=True)
class RequestRecord:
    """One request, filled in on its way. Holds nothing of a user's text.

    Attributes:
        id: of the request, the client's own if it sent a proper X-Request-ID.
        route: the path as the application declares it, "unmatched" for any other, so that no
            client can make up new labels.
        started_ns: time.time_ns() at the first line; seconds: from then to the last byte sent.
        engine_ns: time.time_ns() when the engine got it, 0 for never.
        stages: seconds in the engine, None where the request did not reach it.
        error: kind of failure, such as "validation" or "overloaded", None for none.
        traceparent: the W3C trace context header as received.
    """

    id: str
    method: str
    route: str = "unmatched"
    started_ns: int = 0
    seconds: float = 0.0
    status: int = 0
    texts: int = 0
    tokens: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    engine_ns: int = 0
    stages: Stages | None = None
    error: str | None = None
    traceparent: str | None = None

    @property
    def fault(self) -> bool:
        """Whether it failed by the server's fault; TEI says 424 where a batch failed."""
        return self.status >= 500 or self.status == 424
