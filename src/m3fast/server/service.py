"""`Service`: the state that all requests of one server share."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from m3fast.aio.engine import AsyncEngine
    from m3fast.server.settings import Settings
    from m3fast.server.telemetry.record import RequestRecord


class Reports(Protocol):
    """The part of `Telemetry` that the application uses."""

    def finished(self, record: RequestRecord) -> None: ...
    def exception(self, request_id: str, error: BaseException) -> None: ...
    def metrics(self, engine: AsyncEngine) -> bytes: ...


class Service:
    """The engine, and whether it takes requests; `app.state.service`.

    Attributes:
        pool: threads for scores and large responses.
        warm: the warm-up is done.
        failure: why the warm-up failed, empty otherwise.
        draining: the server is stopping and admits nothing more; set it on SIGTERM.
        active: requests being worked on; held: bytes of their bodies and token vectors.
    """

    def __init__(self, engine: AsyncEngine, settings: Settings, telemetry: Reports) -> None:
        self.engine, self.settings, self.telemetry = engine, settings, telemetry
        self.pool = ThreadPoolExecutor(2, thread_name_prefix="m3fast-respond")
        self.warm = False
        self.failure = ""
        self.draining = False
        self.active = self.held = 0

    @property
    def dead(self) -> str:
        """Why no request can be answered any more; empty while they can."""
        if self.engine.state == "dead":
            return self.engine.reason
        return self.failure

    @property
    def unready(self) -> str:
        """Why no request is taken now; empty while they are."""
        if reason := self.dead:
            return reason
        if self.draining or self.engine.state in ("closing", "closed"):
            return "the server is shutting down"
        return "" if self.warm else "the server is warming up"
