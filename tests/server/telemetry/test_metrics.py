"""The metrics: what each counts, which labels it can have, and that no two servers share them."""

import asyncio
import re
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from servers import eventually, load, running

from m3fast.aio.engine import AsyncEngine, BatchRecord, Load, Stages
from m3fast.server.http.errors import KINDS
from m3fast.server.telemetry.metrics import MOST_LABELS, SECONDS, Metrics
from m3fast.server.telemetry.record import RequestRecord
from m3fast.server.telemetry.telemetry import Telemetry


def record(**changes) -> RequestRecord:
    known = dict(id="a", method="POST", route="/v1/embeddings", seconds=0.01, status=200)
    return RequestRecord(**(known | changes))


def idle(device="cpu") -> SimpleNamespace:
    """Stands for an AsyncEngine."""
    load = Load(tokens=5, texts=3, requests=2, oldest=0.5, tokens_per_second=1000.0)
    runner = SimpleNamespace(device=torch.device(device))
    inner = SimpleNamespace(runners=[runner], dtype=torch.float32)
    return SimpleNamespace(load=load, state="ready", engine=inner)


def values(page: bytes) -> dict[tuple, float]:
    """{(name, label value, ...): value} of every sample."""
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


def test_a_request_is_counted_by_route_and_status_and_kind():
    metrics = Metrics()
    metrics.request(record(texts=3, tokens=30, stages=Stages(0.001, 0.002, 0.004)))
    metrics.request(record(status=429, error="overloaded", seconds=0.0002))
    metrics.request(record(route="/embed", texts=1, tokens=4))
    found = values(metrics.render(idle(), {}))
    assert found["m3fast_requests_total", "/v1/embeddings", "200"] == 1
    assert found["m3fast_requests_total", "/v1/embeddings", "429"] == 1
    assert found["m3fast_requests_total", "/embed", "200"] == 1
    assert found["m3fast_errors_total", "overloaded"] == 1
    assert found["m3fast_texts_total",] == 4
    assert found["m3fast_tokens_total",] == 34
    assert found["m3fast_request_duration_seconds_count", "/v1/embeddings"] == 2
    assert found["m3fast_request_duration_seconds_sum", "/v1/embeddings"] == pytest.approx(0.0102)
    assert found["m3fast_request_duration_seconds_bucket", "0.00025", "/v1/embeddings"] == 1
    stages = {"tokenize": 0.001, "queue": 0.002, "compute": 0.004, "respond": 0.003}
    for stage, seconds in stages.items():
        assert found["m3fast_stage_duration_seconds_count", stage] == 1
        assert found["m3fast_stage_duration_seconds_sum", stage] == pytest.approx(seconds)


def test_a_batch_is_counted_and_padding_is_none():
    metrics = Metrics()
    metrics.batch(BatchRecord(texts=3, tokens=100, requests=2, seconds=0.02))
    metrics.batch(BatchRecord(1, 10, 1, 0.01, "RuntimeError"))
    page = metrics.render(idle(), {})
    found = values(page)
    assert found["m3fast_batch_tokens_sum",] == 110
    assert found["m3fast_batch_texts_sum",] == 4
    assert found["m3fast_batch_requests_sum",] == 3
    assert found["m3fast_batch_duration_seconds_sum",] == pytest.approx(0.03)
    assert found["m3fast_batch_errors_total", "RuntimeError"] == 1
    assert found["m3fast_padding_tokens_total",] == 0
    assert re.search(rb"# HELP m3fast_padding_tokens_total .*by construction", page)


def test_gauges_show_the_queue_the_process_and_the_build():
    found = values(Metrics().render(idle(), {"log_lines": 7}))
    expected = {"tokens": 5, "texts": 3, "requests": 2, "oldest_wait_seconds": 0.5}
    assert {name: found[f"m3fast_queue_{name}",] for name in expected} == expected
    assert found["m3fast_tokens_per_second",] == 1000
    assert found["m3fast_engine_ready",] == 1
    assert found["m3fast_telemetry_dropped", "log_lines"] == 7
    assert found["process_resident_memory_bytes",] > 0
    assert any(key[0] == "m3fast_build_info" and "float32" in key for key in found)
    assert not any(key[0] == "m3fast_gpu_memory_bytes" for key in found)


def test_gpu_memory_is_shown_where_there_is_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (60, 80))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 5)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 7)
    found = values(Metrics().render(idle("cuda:1"), {}))
    for kind, value in {"used": 20, "total": 80, "allocated": 5, "reserved": 7}.items():
        assert found["m3fast_gpu_memory_bytes", "cuda:1", kind] == value


def test_buckets_reach_from_100_us_to_60_s_and_no_series_is_doubled():
    metrics = Metrics()
    metrics.request(record())
    assert (SECONDS[0], SECONDS[-1]) == (1e-4, 60.0)
    assert b"_created" not in metrics.render(idle(), {})


def test_series_have_an_end_whatever_the_labels_are():
    metrics = Metrics()
    for i in range(MOST_LABELS + 50):
        metrics.request(record(route=f"/{i}", error=f"kind {i}"))
    found = values(metrics.render(idle(), {}))
    for name in ("m3fast_requests_total", "m3fast_errors_total"):
        series = {key: value for key, value in found.items() if key[0] == name}
        assert len(series) == MOST_LABELS + 1
        assert sum(value for key, value in series.items() if "other" in key) == 50


def test_two_servers_in_a_process_count_apart():
    one, two = Telemetry(log_level="error"), Telemetry(log_level="error")
    try:
        one.finished(record())
        assert values(one.metrics(idle()))["m3fast_requests_total", "/v1/embeddings", "200"] == 1
        assert b'route="/v1/embeddings"' not in two.metrics(idle())
    finally:
        one.close()
        two.close()


def test_counting_from_many_threads_loses_nothing():
    metrics = Metrics()

    def work():
        for _ in range(500):
            metrics.batch(BatchRecord(1, 2, 1, 0.001))
            metrics.request(record(texts=1))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    found = values(metrics.render(idle(), {}))
    assert found["m3fast_batch_tokens_sum",] == 4000
    assert found["m3fast_texts_total",] == 2000


def test_figures_of_a_real_engine():
    telemetry = Telemetry(log_level="error")

    async def main() -> bytes:
        engine = load()
        async with AsyncEngine(engine, on_batch=telemetry.batch) as served:
            answer = await served.submit(["one text", "and another"])
            tokens = int(answer.embeddings.n_tokens.sum())
            telemetry.finished(record(texts=2, tokens=tokens, stages=answer.stages, seconds=9.0))
        return telemetry.metrics(served)  # closed: a batch is reported after its requests

    try:
        found = values(asyncio.run(main()))
    finally:
        telemetry.close()
    assert found["m3fast_tokens_total",] == found["m3fast_batch_tokens_sum",] > 4
    assert found["m3fast_batch_texts_sum",] == 2
    assert found["m3fast_stage_duration_seconds_sum", "compute"] > 0
    assert found["m3fast_queue_tokens",] == found["m3fast_engine_ready",] == 0


def test_the_documentation_lists_every_metric():
    page = Path(__file__, "../../../../docs/observability.md").resolve().read_text()
    named = set(re.findall(r"`(m3fast_\w+)`", page))
    pattern = rb"# HELP (m3fast_\w+) "
    there = {name.decode() for name in re.findall(pattern, Metrics().render(idle(), {}))}
    assert named == there


def test_a_servers_metrics_over_http_and_no_label_is_a_clients():
    telemetry = Telemetry(log_level="error")
    try:
        with running(telemetry=telemetry) as server:
            for i in range(50):
                assert server.get(f"/zebra{i}").status_code == 404
                server.client.request(f"ZEBRA{i}", "/embed")
                body = {"input": "a", "model": f"zebra{i}"}
                assert server.post("/v1/embeddings", body).status_code == 404
            assert server.post("/embed", {"inputs": ["a text", "another"]}).status_code == 200
            answer = server.get("/metrics")
            counted = ("m3fast_requests_total", "/embed", "200")
            eventually(lambda: values(server.get("/metrics").content).get(counted) == 1)
            found = values(server.get("/metrics").content)
    finally:
        telemetry.close()
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert not any("zebra" in str(key).lower() for key in found)
    assert found["m3fast_requests_total", "unmatched", "404"] == 50
    assert found["m3fast_requests_total", "/v1/embeddings", "404"] == 50
    assert found["m3fast_texts_total",] >= 2
    assert found["m3fast_tokens_total",] >= 6
    assert found["m3fast_stage_duration_seconds_count", "respond"] >= 1
    assert found["m3fast_engine_ready",] == 1
    assert {key[1] for key in found if key[0] == "m3fast_errors_total"} <= set(KINDS)
