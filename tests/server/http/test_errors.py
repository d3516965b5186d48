"""Everything that can be wrong with a request, in every family's own shape."""

import asyncio
import http.client
import json
import socket
import threading

import httpx
import pytest
import servers

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

SECRET = "s3cr3t"
BODIES = {
    "/v1/embeddings": {"input": ["a"]},
    "/embed": {"inputs": ["a"]},
    "/": {"inputs": ["a"]},
    "/embed_sparse": {"inputs": ["a"]},
    "/embed_all": {"inputs": ["a"]},
    "/rerank": {"query": "a", "texts": ["b"]},
    "/similarity": {"inputs": {"source_sentence": "a", "sentences": ["b"]}},
    "/tokenize": {"inputs": ["a"]},
    "/v1/rerank": {"query": "a", "documents": ["b"]},
    "/v2/rerank": {"query": "a", "documents": ["b"]},
    "/encode": {"texts": ["a"]},
    "/score": {"query": "a", "passages": ["b"]},
}
TEI = ("/embed", "/", "/embed_sparse", "/embed_all", "/rerank", "/similarity", "/tokenize")
# One path of each family, for what does not depend on the body.
FAMILIES = ("/v1/embeddings", "/embed", "/v1/rerank", "/encode")
INSIDES = (SECRET, "Traceback", "m3fast.", "/src/", ".py", "pydantic", "Union", "list[", "0x")


@pytest.fixture(scope="module")
def server():
    with servers.running() as running:
        yield running


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


def check(response, path, status, tei_status=None, tei_type="Validation", kind=None):
    """The family's shape, and nothing of ours or the user's in it."""
    answer = response.json()
    if path in TEI:
        assert response.status_code == (tei_status or status), response.text
        assert set(answer) == {"error", "error_type"} and answer["error_type"] == tei_type
        message = answer["error"]
    else:
        assert response.status_code == status, response.text
        assert set(answer["error"]) == {"message", "type", "param", "code"}
        message = answer["error"]["message"]
        if "rerank" in path:
            assert set(answer) == {"id", "message", "error"} and answer["message"] == message
    assert response.headers["content-type"] == "application/json"
    assert 5 < len(message) < 300
    assert not [each for each in INSIDES if each in response.text], response.text
    return message


def raw(server, path, content, kind="application/json", **headers):
    named = {"content-type": kind} if kind else {}
    return server.post(path, content=content, headers={**named, **headers})


NOT_JSON = {
    "empty": b"",
    "cut": b'{"input": "s3cr3t',
    "words": b"s3cr3t",
    "null": b"null",
    "list": b'["s3cr3t"]',
    "text": b'"s3cr3t"',
    "number": b"1e999",
    "not a number": b"NaN",
    "trailing": b'{"input": "a"} s3cr3t',
    "bad UTF-8": b'{"s3cr3t": "\xff\xfe"}',
    "UTF-16": '{"input": "s3cr3t"}'.encode("utf-16"),
    "byte order mark": b'\xef\xbb\xbf{"input": "s3cr3t"}',
    "deep list": b"[" * 200_000,
    "deep objects": b'{"s3cr3t":' * 100_000,
    "zeros": b"\0" * 1000,
}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("name", NOT_JSON)
def test_not_json(server, path, name):
    check(raw(server, path, NOT_JSON[name]), path, 400, 422)


VALUES = {
    "lone surrogate": b'"s3cr3t \\ud800 s3cr3t"',
    "surrogates swapped": b'"\\udc00\\ud800"',
    "huge integer": b"9" * 10_000,
    "large integer": str(2**70).encode(),
    "deep": b"[" * 5000 + b"]" * 5000,
    "deep list of texts": b'[[[["s3cr3t"]]]]',
    "null": b"null",
    "true": b"true",
    "number": b"1.5",
    "object": b'{"s3cr3t": "s3cr3t"}',
    "objects": b'[{"s3cr3t": 1}]',
    "nulls": b"[null]",
    "mixed": b'["a", 1]',
    "many faults": b"[" + b"1.5," * 400_000 + b"1.5]",
    "bad text in a list": b'["a", "\\ud800"]',
}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("name", VALUES)
def test_wrong_value_of_every_field(server, path, name):
    for field in BODIES[path]:
        others = {k: v for k, v in BODIES[path].items() if k != field}
        start = json.dumps(others)[:-1] + (", " if others else "")
        content = start.encode() + b'"%s": %s}' % (field.encode(), VALUES[name])
        message = check(raw(server, path, content), path, 400, 422)
        assert message.startswith((field, "body: expected"))


@pytest.mark.parametrize("path", BODIES)
def test_missing_fields(server, path):
    for field in BODIES[path]:
        body = {k: v for k, v in BODIES[path].items() if k != field}
        message = check(server.post(path, body), path, 400, 422)
        assert field in message


@pytest.mark.parametrize("value", [b"NaN", b"Infinity", b"-Infinity", b"1e999"])
def test_not_a_number(server, value):
    content = b'{"query": "a", "documents": ["b"], "weights": [1, 1, %s]}' % value
    check(raw(server, "/v1/rerank", content), "/v1/rerank", 400)
    content = b'{"texts": ["a"], "timeout": %s}' % value
    check(raw(server, "/encode", content), "/encode", 400)


def test_a_million_unknown_fields(server):
    content = b'{"texts": "a", ' + b",".join(b'"s3cr3t%d": 1' % i for i in range(300_000)) + b"}"
    message = check(raw(server, "/encode", content), "/encode", 400)
    assert message == "body: expected the documented fields, found many others"
    content = b'{"texts": "a", "s3cr3t": 1}'
    message = check(raw(server, "/encode", content), "/encode", 400)
    assert message == "body: expected the documented fields only, found another"


@pytest.mark.parametrize(
    ("path", "field", "values"),
    [
        ("/embed", "normalize", ["true", 1, 0.0]),
        ("/embed", "truncate", ["yes", 1]),
        ("/embed", "dimensions", ["8", True]),
        ("/encode", "sparse", ["true", 1]),
        ("/encode", "timeout", ["5", True]),
        ("/v1/rerank", "top_n", ["1", True, 1.5]),
        ("/v1/embeddings", "encoding_format", ["Base64", True]),
    ],
)
def test_types_are_taken_as_they_are(server, path, field, values):
    for value in values:
        message = check(server.post(path, {**BODIES[path], field: value}), path, 400, 422)
        assert message.startswith(f"{field}: expected")


@pytest.mark.parametrize("path", FAMILIES)
def test_content_types(server, path):
    content = json.dumps(BODIES[path]).encode()
    for kind in (None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data",
                 "application/octet-stream", "application/jsonp", "s3cr3t"):  # fmt: skip
        check(raw(server, path, content, kind), path, 415)
    for kind in ("application/json; charset=utf-8", "APPLICATION/JSON", "application/v+json"):
        assert raw(server, path, content, kind).status_code == 200
    encoding = {"content-encoding": "gzip"}
    check(raw(server, path, content, **encoding), path, 415)


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


@pytest.mark.parametrize("path", BODIES)
def test_too_large_a_body(server, path):
    most = server.service.settings.max_body
    message = check(raw(server, path, b" " * (most + 1)), path, 413)
    assert str(most) in message
    message = check(raw(server, path, iter([b" " * (1 << 20)] * 9)), path, 413)
    # The connection or a new one goes on.
    assert server.post(path, BODIES[path]).status_code == 200


def test_a_body_of_just_the_limit(server):
    body = json.dumps(BODIES["/embed"]).encode()
    content = body + b" " * (server.service.settings.max_body - len(body))
    assert raw(server, "/embed", content).status_code == 200


def exchange(server, *parts: bytes) -> bytes:
    """The response that comes back over a bare connection."""
    with server.connect() as connection:
        for part in parts:
            connection.sendall(part)
        response = http.client.HTTPResponse(connection)
        response.begin()
        return b"%d %b" % (response.status, response.read())


HEAD = b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


def test_a_chunked_body_without_length(server):
    body = json.dumps(BODIES["/embed"]).encode()
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    head = HEAD + b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n"
    answer = exchange(server, head, chunks)
    assert answer.startswith(b"200 [[")


def test_a_length_too_large_is_refused_before_the_body(server):
    for more in (b"", b"expect: 100-continue\r\n"):
        head = HEAD + more + b"content-length: 99999999999999999999\r\n\r\n"
        answer = exchange(server, head.replace(b"99999999999999999999", b"999999999999"))
        assert answer.startswith(b"413") and b"Validation" in answer


def test_a_slow_body():
    with servers.running(body_timeout=0.2) as server:
        for path, mark in (("/embed", b"error_type"), ("/v1/rerank", b'"message"')):
            head = HEAD.replace(b"/embed", path.encode()) + b"content-length: 100\r\n\r\n{"
            answer = exchange(server, head)
            assert answer.startswith(b"408") and mark in answer


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
    engine = servers.Engine.from_pretrained("m3fast-tiny", dtype="float32")

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
    engine = servers.Engine.from_pretrained("m3fast-tiny", dtype="float32", max_length=512)
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
