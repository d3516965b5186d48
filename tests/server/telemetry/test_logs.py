"""What a log line says, and that no user's text gets into it."""

import asyncio
import json
import logging
import threading
import time
from datetime import datetime, timedelta

import pytest
from logpipe import Log, record
from servers import load, running

from m3fast.aio.engine import Stages
from m3fast.errors import ComputeError, InputError
from m3fast.server.telemetry.telemetry import Telemetry

pytestmark = pytest.mark.slow
MARKER = "zebra crossing"


def failure() -> Exception:
    """As a batch that fails on somebody's text."""
    try:
        try:
            raise RuntimeError(f"cannot compute {MARKER}")
        except RuntimeError as error:
            raise ComputeError(f"the batch failed: {MARKER}") from error
    except ComputeError as error:
        return error


def test_a_request_is_one_line_of_json():
    log = Log()
    log.telemetry.finished(
        record(
            tokens=9, bytes_in=70, bytes_out=900, stages=Stages(0.001, 0.002, 0.004),
            traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        )
    )  # fmt: skip
    [line] = log.lines()
    at = datetime.fromisoformat(line.pop("ts"))
    assert at.utcoffset() == timedelta(0)
    assert abs(at.timestamp() - time.time()) < 60
    assert line == {
        "level": "info", "event": "request", "request_id": "a-1", "method": "POST",
        "route": "/embed", "status": 200, "ms": 12.5, "texts": 2, "tokens": 9,
        "bytes_in": 70, "bytes_out": 900,
        "stages": {"tokenize": 1.0, "queue": 2.0, "compute": 4.0, "respond": 5.5},
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
    }  # fmt: skip


def test_failures_have_their_kind_and_a_level():
    log = Log()
    log.telemetry.finished(record(status=429, error="overloaded"))
    for status in (500, 424):
        log.telemetry.finished(record(status=status, error="compute"))
    found = [(line["level"], line["error"]) for line in log.lines()]
    assert found == [("warning", "overloaded"), ("error", "compute"), ("error", "compute")]


def test_the_level_leaves_lines_out():
    log = Log(log_level="warning")
    log.telemetry.finished(record())
    log.telemetry.finished(record(status=404))
    assert [line["status"] for line in log.lines()] == [404]


def test_probes_are_told_only_where_they_fail():
    log = Log()
    for status in (200, 503):
        log.telemetry.finished(record(route="/ready", status=status))
    assert [line["status"] for line in log.lines()] == [503]


def test_text_is_a_readable_line():
    log = Log(log_format="text")
    log.telemetry.finished(record(stages=Stages(0.001, 0.002, 0.004)))
    log.telemetry.exception("a-2", failure())
    logging.getLogger("uvicorn.error").error("Shutting down")
    first, second, *frames, last = log.text().splitlines()
    assert "error   Shutting down logger=uvicorn.error" in last
    assert "info    POST /embed 200 12.5 ms request_id=a-1 texts=2" in first
    assert "stages=tokenize:1.0,queue:2.0,compute:4.0,respond:5.5" in first
    assert "exception request_id=a-2 exception=ComputeError<-RuntimeError" in second
    assert any("test_logs.py" in frame and "failure" in frame for frame in frames)


def test_an_exception_shows_where_but_never_its_message():
    log = Log()
    log.telemetry.exception("a-2", failure())
    [line] = log.lines()
    assert line["request_id"] == "a-2"
    assert line["exception"]["kinds"] == ["ComputeError", "RuntimeError"]
    assert line["exception"]["stack"][-1].endswith(" failure")
    assert MARKER not in json.dumps(line)


def test_an_exception_that_is_its_own_cause_ends():
    log, error = Log(), ValueError()
    error.__cause__ = error
    log.telemetry.exception("a-2", error)
    assert len(log.lines()) == 1


def test_other_loggers_come_through_without_text():
    log = Log()
    logging.getLogger("uvicorn.error").info("Started server process [%d]", 7)
    logging.getLogger("uvicorn.error").error("Exception in ASGI application", exc_info=failure())
    logging.getLogger("uvicorn.error").info('%s - "WebSocket %s" 403', "1.2.3.4", MARKER)
    logging.getLogger("uvicorn.access").info('%s - "%s"', "1.2.3.4", f"GET /?q={MARKER}")
    logging.getLogger("some.library").warning("cannot parse %r", MARKER)
    logging.getLogger("some.library").warning(f"cannot parse {MARKER}")
    logging.getLogger("some.library").info("below its level")
    log.telemetry.logs.logger.info("%d", MARKER)  # does not fit: dropped, not fatal
    log.telemetry.finished(record())
    lines = [line for line in log.lines() if line["event"] != "log_lines_dropped"]
    assert MARKER not in json.dumps(lines)
    assert lines[0]["message"] == "Started server process [7]"
    assert lines[1]["exception"]["kinds"] == ["ComputeError", "RuntimeError"]
    assert lines[2]["message"].startswith("%s")
    assert [line["logger"] for line in lines[3:5]] == ["some.library"] * 2
    assert "test_logs.py" in lines[3]["place"]
    assert lines[5]["event"] == "request"


def test_what_asyncio_says_of_a_lost_exception_is_cut():
    log = Log()

    async def main() -> None:
        async def fail() -> None:
            raise RuntimeError(MARKER)

        def call(_: str) -> None:
            raise RuntimeError(MARKER)

        loop = asyncio.get_running_loop()
        loop.call_soon(call, MARKER)
        task = asyncio.create_task(fail())
        await asyncio.sleep(0.01)
        del task
        import gc

        gc.collect()

    asyncio.run(main())
    lines = log.lines()
    assert MARKER not in json.dumps(lines)
    assert sorted(line["message"] for line in lines) == [
        "Exception in callback test_what_asyncio_says_of_a_lost_exception_is_cut.",
        "Task exception was never retrieved",
    ]


def test_a_thread_that_fails_is_logged_without_text(capfd):
    log = Log()

    def fail() -> None:
        raise RuntimeError(MARKER)

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join(10)
    [line] = log.lines()
    assert line["event"] == "thread_failed"
    assert line["exception"]["kinds"] == ["RuntimeError"]
    assert MARKER not in json.dumps(line) + capfd.readouterr().err


def test_closing_gives_the_process_back(monkeypatch):
    root, hook = logging.getLogger(), threading.excepthook
    monkeypatch.setattr(logging.getLogger("uvicorn"), "level", logging.CRITICAL)
    before = list(root.handlers), logging.getLogger("uvicorn").level
    log = Log()
    assert len(root.handlers) == len(before[0]) + 1
    log.text()
    assert (list(root.handlers), logging.getLogger("uvicorn").level) == before
    assert threading.excepthook is hook


def test_a_method_that_a_client_made_up_is_not_written():
    log = Log()
    log.telemetry.finished(record(method="ZEBRA"))
    log.telemetry.finished(record(traceparent=f"00-{MARKER}"))
    first, second = log.lines()
    assert first["method"] == "_OTHER"
    assert "trace_id" not in second


@pytest.mark.parametrize("option", [{"log_format": "xml"}, {"log_level": "loud"}])
def test_a_bad_option_is_named(option):
    [name] = option
    with pytest.raises(InputError, match=f"^{name}: expected "):
        Telemetry(**option)


def test_nothing_that_a_client_sends_gets_into_a_servers_log():
    marker = "zebra"
    engine = load()
    compute, failing = engine.runner.submit, threading.Event()

    def submit(*arguments):
        if failing.is_set():
            failing.clear()
            raise RuntimeError(f"cannot compute {marker}")
        return compute(*arguments)

    engine.runner.submit = submit
    log = Log()
    with running(engine, telemetry=log.telemetry) as server:
        server.post("/embed", {"inputs": f"{marker} {marker}"})
        server.post("/embed", {"inputs": "a"}, headers={"x-request-id": f"{marker} crossing"})
        headers = {"user-agent": marker, "authorization": f"Bearer {marker}", marker: marker}
        server.post("/embed", {"inputs": "a"}, headers=headers | {"traceparent": marker})
        server.post("/v1/embeddings", {"input": "a", "model": marker, "user": marker})
        broken = (f'{{"inputs": {marker}', f'{{"{marker}": 1}}', f'{{"inputs": {{"{marker}": 1}}}}')
        for body in broken:
            json_type = {"content-type": "application/json"}
            assert server.post("/embed", content=body, headers=json_type).status_code == 422
            server.post("/v1/embeddings", content=body, headers=json_type)
        server.post("/embed", content=marker, headers={"content-type": f"text/{marker}"})
        assert server.get(f"/{marker}?{marker}={marker}").status_code == 404
        server.client.request(marker.upper(), f"/embed?{marker}")
        upgrade = {"connection": "upgrade", "upgrade": "websocket"}
        upgrade |= {"sec-websocket-version": "13", "sec-websocket-key": "A" * 22 + "=="}
        server.get(f"/{marker}", headers=upgrade)
        failing.set()
        failed = server.post("/embed", {"inputs": marker})
        assert failed.status_code == 424
        assert marker not in failed.text
        with server.connect() as bare:
            bare.sendall(f"{marker} / {marker}\r\n\r\n".encode())
            bare.recv(1000)
    text = log.text()
    assert marker not in text.lower()
    lines = [json.loads(line) for line in text.splitlines()]
    requests = [line for line in lines if line["event"] == "request"]
    assert len(requests) >= 13
    assert sum("stages" in line for line in requests) >= 3
    assert {line["route"] for line in requests} >= {"/embed", "/v1/embeddings", "unmatched"}
    [failure] = [line for line in lines if line["event"] == "exception"]
    assert failure["request_id"] == failed.headers["x-request-id"]
    assert failure["exception"]["kinds"] == ["ComputeError", "RuntimeError"]
