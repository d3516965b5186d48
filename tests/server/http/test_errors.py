"""Failures of engine, server and client, in every family's error shape."""

import asyncio
import json
import socket
import threading

import httpx
import pytest
import servers
from families import BODIES, FAMILIES, SECRET, check

from m3fast.aio.engine import AsyncEngine
from m3fast.errors import (
    ComputeError,
    DeadlineError,
    DeviceMemoryError,
    EngineClosedError,
    OverloadedError,
)
from m3fast.server.app import create_app
from m3fast.server.settings import Settings


@pytest.fixture
def broken(server, request):
    """Makes the engine answer every request with an exception."""
    engine = server.service.engine

    def breaks(error):
        async def submit(*_, **__):
            raise error

        engine.submit = submit

    yield breaks
    engine.__dict__.pop("submit", None)


@pytest.mark.parametrize("path", BODIES)
def test_wrong_method(server, path):
    methods = ("PUT", "DELETE", "PATCH", "OPTIONS") + (() if path == "/" else ("GET",))
    for method in methods:
        response = server.client.request(method, path)
        check(response, path, 405)
        assert response.headers["allow"] == ("GET, POST" if path == "/" else "POST")


def test_no_such_path(server):
    for path in ("/s3cr3t", "/v1/s3cr3t", "/s3cr3t/", "/embed/s3cr3t/"):
        response = server.post(path, {"input": "a"})
        check(response, "/encode", 404)
        assert server.last_record(response.headers["x-request-id"]).route == "unmatched"


HEAD = b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


@pytest.mark.parametrize("path", FAMILIES)
def test_failures_of_the_engine(server, broken, path):
    body = BODIES[path]
    for error, status, tei_status, tei_type in (
        (RuntimeError(SECRET), 500, 500, "Backend"),
        (ValueError(SECRET), 500, 500, "Backend"),
        (MemoryError(SECRET), 500, 500, "Backend"),
        (ComputeError(f"the batch failed: {SECRET}"), 500, 424, "Backend"),
        (DeadlineError("timeout: no answer within 1 s"), 504, 504, "Backend"),
        (DeviceMemoryError("texts: one of 9 tokens does not fit"), 413, 413, "Validation"),
        (EngineClosedError(SECRET), 503, 503, "Unhealthy"),
        (OverloadedError("overloaded: 9 tokens are queued", 2.2), 429, 429, "Overloaded"),
    ):
        broken(error)
        before = len(server.reports.errors)
        response = server.post(path, body)
        message = check(response, path, status, tei_status, tei_type)
        record = server.last_record(response.headers["x-request-id"])
        assert record.error and record.status == response.status_code and record.route == path
        if response.status_code in (500, 424):
            assert record.id in message
            assert server.reports.errors[-1] == (record.id, error)
        else:
            assert len(server.reports.errors) == before
        if isinstance(error, OverloadedError):
            assert response.headers["retry-after"] == "3"
        if isinstance(error, EngineClosedError):
            assert int(response.headers["retry-after"]) >= 1


@pytest.mark.parametrize("path", FAMILIES)
def test_not_ready(server, path):
    service = server.service
    try:
        for name, value in (("draining", True), ("warm", False), ("failure", "it failed")):
            was = getattr(service, name)
            setattr(service, name, value)
            check(server.post(path, BODIES[path]), path, 503, tei_type="Unhealthy")
            ready, health = server.get("/ready"), server.get("/health")
            assert ready.status_code == 503 and ready.json()["reason"]
            assert health.status_code == (503 if name == "failure" else 200)
            setattr(service, name, was)
        assert server.get("/ready").json() == {"status": "ok"}
    finally:
        service.draining, service.warm, service.failure = False, True, ""


def test_a_failing_warm_up():
    engine = servers.load()

    def warmup():
        raise RuntimeError(SECRET)

    engine.warmup = warmup
    reports = servers.Reporter()
    app = create_app(AsyncEngine(engine), Settings(), reports)

    async def asked():
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://x") as client,
            asyncio.timeout(servers.PATIENCE),
        ):
            while not app.state.service.failure:
                await asyncio.sleep(0.01)
            return [await client.get(path) for path in ("/health", "/ready")]

    for response in asyncio.run(asked()):
        assert response.status_code == 503
        assert response.json()["reason"] == "the warm-up failed: RuntimeError"
    assert isinstance(reports.errors[0][1], RuntimeError)


def test_more_requests_than_allowed():
    began, go_on = threading.Event(), threading.Event()
    with servers.running(max_requests=1) as server:
        submit = server.service.engine.submit

        async def slow(*arguments, **options):
            began.set()
            await asyncio.to_thread(go_on.wait, servers.PATIENCE)
            return await submit(*arguments, **options)

        server.service.engine.submit = slow
        answers = []
        first = threading.Thread(
            target=lambda: answers.append(server.post("/embed", BODIES["/embed"]))
        )
        first.start()
        assert began.wait(servers.PATIENCE)
        for path in FAMILIES:
            response = server.post(path, BODIES[path])
            check(response, path, 429, tei_type="Overloaded")
            assert response.headers["retry-after"] == "1"
        for path in ("/health", "/ready", "/metrics"):
            assert server.get(path).status_code == 200
        go_on.set()
        first.join(servers.PATIENCE)
        assert answers[0].status_code == 200
        assert server.post("/embed", BODIES["/embed"]).status_code == 200
        servers.eventually(lambda: server.service.active == 0)


def test_a_client_that_goes_away_cancels_its_work(server):
    began, cancelled = threading.Event(), threading.Event()

    async def forever(*_, **__):
        began.set()
        try:
            await asyncio.sleep(servers.PATIENCE)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    server.service.engine.submit = forever
    try:
        body = json.dumps(BODIES["/embed"]).encode()
        with server.connect() as connection:
            head = b"x-request-id: gone\r\ncontent-length: %d\r\n\r\n" % len(body)
            connection.sendall(HEAD + head + body)
            assert began.wait(servers.PATIENCE)
            connection.shutdown(socket.SHUT_RDWR)
        assert cancelled.wait(servers.PATIENCE)
    finally:
        del server.service.engine.submit
    record = server.last_record("gone")
    assert record.error == "disconnected" and record.status == 499
    servers.eventually(lambda: server.service.active == 0)
    assert not [error for request, error in server.reports.errors if request == "gone"]


def test_request_ids(server):
    for given in ("abc-1.Z_9", "x" * 64):
        response = server.post("/embed", BODIES["/embed"], headers={"x-request-id": given})
        assert response.headers["x-request-id"] == given
    for bad in ("", "a b", "x" * 65, "a\tb", "<s3cr3t>", "ä"):
        headers = {"x-request-id": bad.encode()}
        response = server.post("/s3cr3t", BODIES["/embed"], headers=headers)
        assert len(response.headers["x-request-id"]) == 32


def test_memory_is_bounded_over_all_requests():
    text = "word " * 12_000
    body = json.dumps({"inputs": text, "truncate": True}).encode()
    lines = ["POST /embed HTTP/1.1", "host: x", "content-type: application/json"]
    head = "\r\n".join([*lines, f"content-length: {len(body)}", "", ""])
    # One that cuts texts early: what is held of this one is its body.
    engine = servers.load(max_length=512)
    with servers.running(engine, max_memory=100_000) as server, server.connect() as slow:
        slow.sendall(head.encode() + body[:-1])
        servers.eventually(lambda: server.service.held == len(body) - 1)
        refused = server.post("/embed", {"inputs": text, "truncate": True})
        assert refused.status_code == 429 and refused.headers["retry-after"]
        assert refused.json() == {
            "error": "memory: expected at most 100000 bytes of bodies and vectors in all, "
            "found more",
            "error_type": "Overloaded",
        }
        assert server.post("/embed", {"inputs": "short"}).status_code == 200
        slow.sendall(body[-1:])
        assert slow.recv(100).startswith(b"HTTP/1.1 200")
        vectors = {"texts": ["word " * 400], "dense": False, "colbert": True}
        assert server.post("/encode", vectors).status_code == 429
        servers.eventually(lambda: server.service.held == 0)
