"""Traces: the spans of a request, their parents and times, and that no request waits for them."""

import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from faults import spied
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from servers import running

from m3fast.aio.engine import Stages
from m3fast.errors import InputError
from m3fast.server.telemetry.record import RequestRecord
from m3fast.server.telemetry.telemetry import Telemetry
from m3fast.server.telemetry.tracing import Traces

TRACE, PARENT = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331
TRACEPARENT = f"00-{TRACE:032x}-{PARENT:016x}-01"
STARTED = 1_700_000_000_000_000_000


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    """Whatever the machine's own settings are."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


def record(**changes) -> RequestRecord:
    known = dict(
        id="a-1", method="POST", route="/embed", started_ns=STARTED, seconds=0.010, status=200,
        texts=2, tokens=9, engine_ns=STARTED + 1_000_000, stages=Stages(0.001, 0.002, 0.004),
    )  # fmt: skip
    return RequestRecord(**(known | changes))


def spans_of(*records: RequestRecord) -> dict:
    """Spans by name."""
    exporter = InMemorySpanExporter()
    traces = Traces(SimpleSpanProcessor(exporter))
    for each in records:
        traces.request(each)
    traces.close()
    return {span.name: span for span in exporter.get_finished_spans()}


def test_a_request_is_a_server_span_with_its_stages_at_their_times():
    spans = spans_of(record())
    root = spans["POST /embed"]
    assert root.kind is SpanKind.SERVER
    assert (root.start_time, root.end_time) == (STARTED, STARTED + 10_000_000)
    assert root.parent is None
    assert root.status.status_code is StatusCode.UNSET
    assert dict(root.attributes) == {
        "http.request.method": "POST", "http.route": "/embed", "http.response.status_code": 200,
        "http.request.body.size": 0, "http.response.body.size": 0, "m3fast.request_id": "a-1",
        "m3fast.texts": 2, "gen_ai.usage.input_tokens": 9,
    }  # fmt: skip
    times = {"tokenize": (1, 2), "queue": (2, 4), "compute": (4, 8)}
    for name, (start, end) in times.items():
        assert spans[name].parent.span_id == root.context.span_id
        assert spans[name].start_time == STARTED + start * 1_000_000
        assert spans[name].end_time == STARTED + end * 1_000_000


def test_the_clients_trace_goes_on():
    root = spans_of(record(traceparent=TRACEPARENT))["POST /embed"]
    assert (root.context.trace_id, root.parent.span_id) == (TRACE, PARENT)
    assert root.parent.is_remote


def test_a_client_that_does_not_sample_is_heeded():
    assert spans_of(record(traceparent=TRACEPARENT[:-1] + "0")) == {}


@pytest.mark.parametrize("header", ["", "00-zebra", TRACEPARENT[:-3], "ff" + TRACEPARENT[2:]])
def test_a_broken_traceparent_begins_a_new_trace(header):
    root = spans_of(record(traceparent=header))["POST /embed"]
    assert root.parent is None
    assert root.context.trace_id != TRACE


@pytest.mark.parametrize("status", [500, 424])
def test_failures_are_marked(status):
    failed = spans_of(record(status=status, error="compute"))["POST /embed"]
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.attributes["error.type"] == "compute"
    refused = spans_of(record(status=429, error="overloaded", stages=None))
    assert list(refused) == ["POST /embed"]
    assert refused["POST /embed"].status.status_code is StatusCode.UNSET


def test_what_was_never_read_as_a_request_has_no_span():
    assert spans_of(record(started_ns=0, stages=None, status=408, error="slow")) == {}


def test_a_method_that_a_client_made_up_is_no_name():
    assert list(spans_of(record(method="ZEBRA", stages=None))) == ["HTTP /embed"]


class Sink:
    """A collector on a port of its own; holds requests back until `release` is set."""

    def __init__(self, hold: bool = False) -> None:
        self.bodies: list[bytes] = []
        self.release = threading.Event()
        sink = self
        if not hold:
            self.release.set()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                sink.bodies.append(self.rfile.read(int(self.headers["content-length"])))
                sink.release.wait(30)
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.release.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def sink():
    it = Sink()
    yield it
    it.close()


def test_spans_are_sent_as_otlp_where_the_environment_says(monkeypatch, sink):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", sink.url)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "search")
    telemetry = Telemetry(log_level="error", traces=True)
    telemetry.finished(record(traceparent=TRACEPARENT))
    telemetry.close()
    sent = ExportTraceServiceRequest.FromString(sink.bodies[0]).resource_spans[0]
    service = {item.key: item.value.string_value for item in sent.resource.attributes}
    assert service["service.name"] == "search"
    spans = sent.scope_spans[0].spans
    assert {span.name for span in spans} == {"POST /embed", "tokenize", "queue", "compute"}
    assert {span.trace_id for span in spans} == {TRACE.to_bytes(16, "big")}


def test_a_collector_that_hangs_holds_nothing_up(monkeypatch):
    sink = Sink(hold=True)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", sink.url)
    telemetry = Telemetry(log_level="error", traces=True)

    def work() -> None:
        for _ in range(2000):
            telemetry.finished(record(stages=None))
        telemetry.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    sink.close()


@pytest.mark.parametrize(
    ("name", "value"),
    [("OTEL_TRACES_EXPORTER", "zipkin"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")],
)
def test_an_exporter_that_is_not_there_is_refused(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"^{name}: expected .*, found '{value}'"):
        Telemetry(traces=True)


def test_no_exporter_at_all(monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    telemetry = Telemetry(log_level="error", traces=True)
    telemetry.finished(record())
    telemetry.close()


def test_missing_packages_are_one_clear_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(InputError, match=r"^traces: .*: pip install 'm3fast\[otel\]'"):
        Telemetry(traces=True)


@pytest.mark.slow
def test_without_traces_nothing_of_them_is_imported():
    code = """
import json, sys
from m3fast.server.telemetry.telemetry import Telemetry
Telemetry().close()
print(json.dumps([name for name in sys.modules if name.startswith("opentelemetry")]))
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=180, check=True
    )
    assert json.loads(ended.stdout) == []


def test_spans_lost_are_counted():
    started = threading.Event()
    hold = threading.Event()

    class Slow(SimpleSpanProcessor):
        def on_end(self, span) -> None:
            started.set()
            hold.wait(30)

    traces = Traces(Slow(InMemorySpanExporter()))
    traces.request(record(stages=None))
    assert started.wait(10)
    for _ in range(5000):
        traces.request(record(stages=None))
    assert traces.dropped > 0
    hold.set()
    traces.close()


def test_a_servers_spans_go_from_the_first_byte_to_the_last(monkeypatch, sink):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", sink.url)
    telemetry = Telemetry(log_level="error", traces=True)
    with running(telemetry=telemetry) as server, spied() as spy:
        spy.fail = lambda _: time.sleep(0.5)  # slow, not failing: more than the slack below
        before = time.time_ns()
        server.post("/embed", {"inputs": "a text"}, headers={"traceparent": TRACEPARENT})
        after = time.time_ns()
    telemetry.close()
    sent = [ExportTraceServiceRequest.FromString(body) for body in sink.bodies]
    spans = [span for one in sent for span in one.resource_spans[0].scope_spans[0].spans]
    trace = {span.name: span for span in spans if span.trace_id == TRACE.to_bytes(16, "big")}
    assert trace.keys() == {"POST /embed", "tokenize", "queue", "compute"}
    root = trace["POST /embed"]
    assert root.parent_span_id == PARENT.to_bytes(8, "big")
    order = [root.start_time_unix_nano]
    for name in ("tokenize", "queue", "compute"):
        assert trace[name].parent_span_id == root.span_id
        order += [trace[name].start_time_unix_nano, trace[name].end_time_unix_nano]
    # The end is known by another clock, read an instant earlier or later, and the client hears of
    # it earlier. A loaded machine may take this thread away in between.
    slack = 250_000_000
    assert before <= order[0]
    assert order == sorted(order)
    assert order[-1] <= root.end_time_unix_nano + slack
    assert order[-1] <= after + slack
    computed = trace["compute"].end_time_unix_nano - trace["compute"].start_time_unix_nano
    assert computed >= 450_000_000
