"""OpenTelemetry traces: a span per request with the engine's stages below it, sent as OTLP/HTTP.

Spans are made in a thread of their own once a request is over, with its times. The usual `OTEL_*`
environment variables say where they are sent, how many are sampled and the service's name.
"""

from __future__ import annotations

import importlib
import os
import threading
from typing import TYPE_CHECKING, Any

from m3fast._version import __version__
from m3fast.errors import InputError
from m3fast.server.telemetry.background import Background
from m3fast.server.telemetry.formats import known_method

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

    from m3fast.server.telemetry.record import RequestRecord

# Finished requests that wait to become spans; more are dropped and counted.
REQUESTS = 4096
PACKAGES = (
    "opentelemetry.sdk.trace",
    "opentelemetry.sdk.trace.export",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
)


class Traces:
    """Makes and sends the spans of one server."""

    def __init__(self, processor: SpanProcessor | None = None) -> None:
        """
        Args:
            processor: takes the spans; None to send them where the environment says.

        Raises:
            InputError: packages are missing, or the environment asks for another protocol.
        """
        try:
            for package in PACKAGES:
                importlib.import_module(package)
        except ModuleNotFoundError as error:
            raise InputError(
                f"traces: {error.name} is not installed: pip install 'm3fast[otel]'"
            ) from None
        from opentelemetry import trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._trace, self._propagator = trace, TraceContextTextMapPropagator()
        name = os.environ.get("OTEL_SERVICE_NAME", "m3fast")
        resource = Resource.create({"service.name": name, "service.version": __version__})
        # Of its own, not the process's: a host application may have one.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        if (chosen := processor or _from_environment()) is not None:
            self._provider.add_span_processor(chosen)
        self._tracer = self._provider.get_tracer("m3fast.server", __version__)
        self._background = Background("m3fast-traces", self._make, limit=REQUESTS)

    @property
    def dropped(self) -> int:
        """Requests whose spans were lost."""
        return self._background.dropped

    def request(self, record: RequestRecord) -> None:
        """Queue the spans of a request that is over; none for one that could not be parsed."""
        if record.started_ns:
            self._background.put(record)

    def close(self, seconds: float = 5.0) -> None:
        """Send what is left, for at most `seconds`; a collector that hangs is left behind."""
        self._background.close(seconds / 2)
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        ending.join(seconds / 2)

    def _make(self, records: list[RequestRecord]) -> None:
        for record in records:
            self._spans(record)

    def _spans(self, record: RequestRecord) -> None:
        context = None
        if record.traceparent is not None:
            context = self._propagator.extract({"traceparent": record.traceparent})
        method = known_method(record.method)
        span = self._tracer.start_span(
            f"{'HTTP' if method == '_OTHER' else method} {record.route}",
            context=context,
            kind=self._trace.SpanKind.SERVER,
            start_time=record.started_ns,
            attributes=_attributes(record, method),
        )
        if record.fault:
            span.set_status(self._trace.StatusCode.ERROR)
        if record.stages is not None and record.engine_ns and span.is_recording():
            inside, at = self._trace.set_span_in_context(span), record.engine_ns
            for name in ("tokenize", "queue", "compute"):
                part = self._tracer.start_span(name, context=inside, start_time=at)
                at += int(getattr(record.stages, name) * 1e9)
                part.end(at)
        span.end(record.started_ns + int(record.seconds * 1e9))


def _attributes(record: RequestRecord, method: str) -> dict[str, Any]:
    """In the names of the semantic conventions; no path and no query, which a client writes."""
    found: dict[str, Any] = {
        "http.request.method": method,
        "http.route": record.route,
        "http.request.body.size": record.bytes_in,
        "http.response.body.size": record.bytes_out,
        "m3fast.request_id": record.id,
        "m3fast.texts": record.texts,
        "gen_ai.usage.input_tokens": record.tokens,
    }
    if record.status:
        found["http.response.status_code"] = record.status
    if record.error is not None:
        found["error.type"] = record.error
    return found


def _from_environment() -> SpanProcessor | None:
    """
    Raises:
        InputError: another exporter or protocol than OTLP over HTTP is asked for.
    """
    wanted = os.environ.get("OTEL_TRACES_EXPORTER", "otlp")
    if wanted == "none":
        return None
    if wanted != "otlp":
        raise InputError(f"OTEL_TRACES_EXPORTER: expected 'otlp' or 'none', found {wanted!r}")
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        protocol = os.environ.get(name, "http/protobuf")
        if protocol != "http/protobuf":
            raise InputError(f"{name}: expected 'http/protobuf', found {protocol!r}")
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return BatchSpanProcessor(OTLPSpanExporter())
