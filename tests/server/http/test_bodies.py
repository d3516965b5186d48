"""Bodies that are malformed, too large or too slow, in every family's error shape."""

import http.client
import json

import pytest
import servers
from families import BODIES, FAMILIES, check


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
