"""Prometheus metrics of one server, on a registry of their own."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.registry import Collector

from m3fast._version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric

    from m3fast.aio.engine import AsyncEngine, BatchRecord
    from m3fast.server.telemetry.record import RequestRecord

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# 100 us to 60 s, three per decade.
SECONDS = (
    1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0, 30.0, 60.0,
)  # fmt: skip
BATCH_TOKENS = tuple(float(1 << i) for i in range(2, 18))
BATCH_TEXTS = tuple(float(1 << i) for i in range(13))
# Routes, statuses and kinds come from the code. The limit holds should one ever come from a client.
MOST_LABELS = 256
OTHER = "other"
Family = TypeVar("Family", Counter, Histogram)


class Metrics:
    """All metrics of one server; its methods may be called from any thread."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, help: str, *labels: str) -> Counter:
            return Counter(f"m3fast_{name}", help, labels, registry=registry)

        def gauge(name: str, help: str, *labels: str) -> Gauge:
            return Gauge(f"m3fast_{name}", help, labels, registry=registry)

        def histogram(
            name: str, help: str, *labels: str, buckets: tuple[float, ...] = SECONDS
        ) -> Histogram:
            return Histogram(f"m3fast_{name}", help, labels, buckets=buckets, registry=registry)

        requests = counter("requests", "Requests answered.", "route", "status")
        seconds = histogram(
            "request_duration_seconds", "From a request's first byte to the last sent.", "route"
        )
        self._requests, self._seconds = _Series(requests), _Series(seconds)
        self._errors = _Series(counter("errors", "Requests that failed, by kind.", "kind"))
        stages = histogram(
            "stage_duration_seconds",
            "Stages of requests that reached the engine: tokenize, queue (waiting for a batch), "
            "compute (from its first batch to its last), respond (all the rest).",
            "stage",
        )
        self._tokenize, self._queue, self._compute, self._respond = (
            stages.labels(stage) for stage in ("tokenize", "queue", "compute", "respond")
        )
        self._texts = counter("texts", "Texts of answered requests.")
        self._tokens = counter("tokens", "Tokens of answered requests, special ones included.")
        counter(
            "padding_tokens",
            "Tokens computed that belong to no text. Always 0: texts are packed end to end, so "
            "there is no padding by construction.",
        )
        self._queue_tokens = gauge("queue_tokens", "Tokens admitted and not yet answered.")
        self._queue_texts = gauge("queue_texts", "Texts that wait for a batch.")
        self._queue_requests = gauge("queue_requests", "Requests admitted and not yet answered.")
        self._oldest = gauge(
            "queue_oldest_wait_seconds", "How long the text that waits longest has waited."
        )
        self._speed = gauge("tokens_per_second", "Tokens computed per second, over late batches.")
        self._ready = gauge("engine_ready", "1 where the engine takes requests, else 0.")
        self._batch_tokens = histogram(
            "batch_tokens", "Tokens per batch.", buckets=BATCH_TOKENS
        )
        self._batch_texts = histogram("batch_texts", "Texts per batch.", buckets=BATCH_TEXTS)
        self._batch_requests = histogram(
            "batch_requests", "Requests that share a batch.", buckets=BATCH_TEXTS
        )
        self._batch_seconds = histogram("batch_duration_seconds", "Seconds to compute a batch.")
        errors = counter("batch_errors", "Batches that failed, by exception.", "kind")
        self._batch_errors = _Series(errors)
        self._lost = gauge(
            "telemetry_dropped", "Log lines and traces lost rather than waited for.", "what"
        )
        self._memory = gauge(
            "gpu_memory_bytes",
            "Memory of a CUDA device: used by anyone and total (the driver's figures), allocated "
            "and reserved (this process's).",
            "device",
            "kind",
        )
        self._build = Info("m3fast_build", "What is being served.", registry=registry)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)

    def request(self, record: RequestRecord) -> None:
        """Count a request that is over."""
        self._requests(record.route, record.status).inc()
        self._seconds(record.route).observe(record.seconds)
        if record.error is not None:
            self._errors(record.error).inc()
        self._texts.inc(record.texts)
        self._tokens.inc(record.tokens)
        if (stages := record.stages) is not None:
            self._tokenize.observe(stages.tokenize)
            self._queue.observe(stages.queue)
            self._compute.observe(stages.compute)
            known = stages.tokenize + stages.queue + stages.compute
            self._respond.observe(max(0.0, record.seconds - known))

    def batch(self, record: BatchRecord) -> None:
        """Count a batch that was computed or has failed."""
        self._batch_tokens.observe(record.tokens)
        self._batch_texts.observe(record.texts)
        self._batch_requests.observe(record.requests)
        self._batch_seconds.observe(record.seconds)
        if record.error is not None:
            self._batch_errors(record.error).inc()

    def render(self, engine: AsyncEngine, dropped: dict[str, int]) -> bytes:
        """Everything in Prometheus' text format (`CONTENT_TYPE`)."""
        load = engine.load
        self._queue_tokens.set(load.tokens)
        self._queue_texts.set(load.texts)
        self._queue_requests.set(load.requests)
        self._oldest.set(load.oldest)
        self._speed.set(load.tokens_per_second)
        self._ready.set(engine.state == "ready")
        for what, lost in dropped.items():
            self._lost.labels(what).set(lost)
        inner = engine.engine
        self._build.info(
            {
                "version": __version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
                "device": ",".join(str(runner.device) for runner in inner.runners),
                "dtype": str(inner.dtype).removeprefix("torch."),
            }
        )
        for device in {runner.device for runner in inner.runners if runner.device.type == "cuda"}:
            free, total = torch.cuda.mem_get_info(device)
            figures = {
                "used": total - free,
                "total": total,
                "allocated": torch.cuda.memory_allocated(device),
                "reserved": torch.cuda.memory_reserved(device),
            }
            for kind, value in figures.items():
                self._memory.labels(str(device), kind).set(value)
        return generate_latest(_WithoutCreated(self.registry))


class _Series(Generic[Family]):
    """The series of a metric by the values of its labels, faster than the library's own look-up."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._found: dict[tuple[str | int, ...], Family] = {}

    def __call__(self, *values: str | int) -> Family:
        """The series of these values; that of "other" once there are too many."""
        series = self._found.get(values)
        if series is None:
            if len(self._found) >= MOST_LABELS:
                return self._family.labels(*(OTHER for _ in values))
            series = self._found[values] = self._family.labels(*values)
        return series


class _WithoutCreated(Collector):
    """A registry less the `_created` series, which double every counter and histogram.

    The library's own switch for them is global to the process.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._whole = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._whole.collect():
            metric.samples = [s for s in metric.samples if not s.name.endswith("_created")]
            yield metric
