"""`Telemetry`: metrics, logs and traces of one server, from the records of its requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from m3fast.server.telemetry.logs import Logs
from m3fast.server.telemetry.metrics import Metrics
from m3fast.server.telemetry.tracing import Traces

if TYPE_CHECKING:
    from m3fast.aio.engine import AsyncEngine, BatchRecord
    from m3fast.server.telemetry.logs import LogFormat
    from m3fast.server.telemetry.record import RequestRecord


class Telemetry:
    """Metrics, logs and traces of one server. Nothing in it waits for a log or a collector.

    Attributes:
        logs: for events of the server's own.
    """

    def __init__(
        self,
        log_format: LogFormat = "json",
        log_level: str = "info",
        traces: bool = False,
        *,
        fd: int = 2,
    ) -> None:
        """
        Args:
            log_format: "json" for one object per line, or "text".
            log_level: debug, info, warning or error. Requests are info, 4xx warning, 5xx error.
            traces: send OpenTelemetry traces where the OTEL_* environment variables say.
            fd: file descriptor of the log.

        Raises:
            InputError: an argument is not as described, or packages for traces are missing.
        """
        self._traces = Traces() if traces else None
        self._closed = False
        self._metrics = Metrics()
        self.logs = Logs(log_format, log_level, fd=fd)

    def finished(self, record: RequestRecord) -> None:
        """Take the record of a request that is over; it must not change any more."""
        self._metrics.request(record)
        self.logs.request(record)
        if self._traces is not None:
            self._traces.request(record)

    def batch(self, record: BatchRecord) -> None:
        """Take the record of a batch, computed or failed; may be called from any thread."""
        self._metrics.batch(record)

    def exception(self, request_id: str, error: BaseException) -> None:
        """Log the classes of an exception and the places in the code, without any message."""
        self.logs.exception(request_id, error)

    def metrics(self, engine: AsyncEngine) -> bytes:
        """All metrics in Prometheus' text format."""
        dropped = {"log_lines": self.logs.dropped}
        if self._traces is not None:
            dropped["traces"] = self._traces.dropped
        return self._metrics.render(engine, dropped)

    def close(self) -> None:
        """Write and send what is left, for a few seconds at most. May be called again."""
        if self._closed:
            return
        self._closed = True
        if self._traces is not None:
            self._traces.close()
        self.logs.close()
