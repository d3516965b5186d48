"""What can go wrong with clients, bytes, time, memory and the device, provoked for real."""

from __future__ import annotations

import json
import random
import socket
import struct
import time

import numpy as np
import pytest
import torch
from faults import Wire, embed, request, spied, started
from servers import PATIENCE, eventually, tiny

from m3fast.errors import ComputeError

SECRET = "zanzibar"


@pytest.fixture
def held():
    """A server whose device is busy with one request, and a spy that can let it go."""
    with started() as server, spied() as spy, Wire(server.port) as first:
        spy.hold()
        first.send(embed("first"))
        spy.busy()
        yield server, spy, first
        spy.gate.set()


def waits(server, wire: Wire, sent: bytes) -> None:
    """Send a request and see it queued."""
    load = server.service.engine
    before = load.load.texts
    wire.send(sent)
    eventually(lambda: load.load.texts > before)


def nothing_left(server) -> None:
    """No request, task or token is left over."""
    eventually(lambda: server.service.active == 0)
    eventually(lambda: not server.server.connections.tasks)
    engine = server.service.engine
    eventually(lambda: engine.load.requests == 0)
    if engine.state != "dead":
        eventually(lambda: engine.load.tokens == 0)


def reset(wire: Wire) -> None:
    """Vanish as a process that is killed does."""
    wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wire.socket.close()


# Clients


@pytest.mark.parametrize("drip", [False, True])
def test_a_body_that_does_not_come_is_not_waited_for(drip) -> None:
    with started(body_timeout=0.4) as server, Wire(server.port) as wire:
        sent = embed(SECRET * 1000)
        wire.send(sent[:200])
        end = time.monotonic() + PATIENCE
        for at in range(200, 200 + 4000 * drip):
            wire.send(sent[at : at + 1])
            time.sleep(0.005)
            if server.records:
                break
            assert time.monotonic() < end
        status, headers, body = wire.response()
        assert status == 408 and headers["connection"] == "close"
        assert "body" in json.loads(body)["error"]
        assert wire.ended
        nothing_left(server)


@pytest.mark.parametrize("leave", [lambda wire: wire.socket.close(), reset])
def test_a_client_that_leaves_before_its_batch_is_not_computed(held, leave) -> None:
    server, spy, first = held
    stays, leaves = Wire(server.port), Wire(server.port)
    waits(server, leaves, embed("leaves"))
    waits(server, stays, embed("stays"))
    leave(leaves)
    eventually(lambda: server.service.engine.load.requests == 2)
    eventually(lambda: 499 in server.statuses)
    spy.gate.set()
    assert first.response()[0] == stays.response()[0] == 200
    assert spy.texts == 2, "the text of the one that left is not among them"
    nothing_left(server)
    stays.socket.close()


def test_a_client_that_leaves_within_its_batch_spoils_nothing(held) -> None:
    server, spy, first = held
    stays, leaves = Wire(server.port), Wire(server.port)
    waits(server, leaves, embed("leaves"))
    waits(server, stays, embed("stays"))
    spy.entered.clear()
    gate, spy.gate = spy.gate, type(spy.gate)()  # lets the first go, holds the next
    gate.set()
    spy.busy()
    eventually(lambda: len(spy.batches) == 2)
    reset(leaves)
    eventually(lambda: 499 in server.statuses)
    spy.gate.set()
    assert first.response()[0] == 200
    found = json.loads(stays.response()[2])
    assert len(found) == 1 and len(found[0]) == tiny().config.hidden_size
    nothing_left(server)
    stays.socket.close()


def test_a_client_that_leaves_in_the_middle_of_its_response(held) -> None:
    server, spy, first = held
    spy.gate.set()
    assert first.response()[0] == 200
    body = json.dumps({"texts": ["word " * 100] * 100, "colbert": True}).encode()
    for leave in (lambda wire: wire.socket.close(), reset):
        wire = Wire(server.port, receive_buffer=4096)
        wire.send(request("/encode", body))
        wire.line()
        leave(wire)
        nothing_left(server)
    assert server.post("/embed", {"inputs": "after"}).status_code == 200


def test_a_client_that_does_not_take_its_response_is_cut() -> None:
    with started(write_timeout=0.4) as server:
        body = json.dumps({"texts": ["word " * 100] * 100, "colbert": True}).encode()
        with Wire(server.port, receive_buffer=4096) as wire:
            wire.send(request("/encode", body))
            eventually(lambda: server.records)
            nothing_left(server)
            eventually(lambda: not server.server.connections.open)


# Bytes


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embed", "/v1/rerank", "/encode", "/score"])
def test_a_body_that_is_too_large_is_refused_to_one_that_still_sends(path) -> None:
    big = b'{"inputs": "' + b"x" * (9 << 20) + b'"}'
    with started() as server:
        with Wire(server.port) as wire:
            wire.send(request(path, big))
            status, _, body = wire.response()
            assert status == 413 and b"at most 8388608 bytes" in body
            wire.send(request("/health"))  # the rest was thrown away, and it goes on
            assert wire.response()[0] == 200
        with Wire(server.port) as wire:
            head = ("Transfer-Encoding: chunked", "Content-Type: application/json")
            wire.send(request(path, None, *head, method="POST"))
            for _ in range(9):
                wire.send(b"100000\r\n" + b"x" * (1 << 20) + b"\r\n")
            assert wire.response()[0] == 413
        with Wire(server.port) as wire:  # asks first, as curl does: is not asked to send
            head = ("Content-Type: application/json", f"Content-Length: {9 << 20}")
            wire.send(request(path, None, *head, "Expect: 100-continue", method="POST"))
            assert wire.response()[0] == 413 and wire.ended
        with Wire(server.port) as wire:
            wire.send(request(path, big, "Connection: close"))
            assert wire.response()[0] == 413
            assert wire.ended and not wire.reset, "a cut would hide the answer"
        nothing_left(server)
        assert server.get("/health").status_code == 200


def test_a_client_that_asks_first_is_told_to_go_on() -> None:
    with started() as server, Wire(server.port) as wire:
        sent = request("/embed", b'{"inputs": "a"}', "Expect: 100-continue")
        wire.send(sent[:-15])
        assert wire.response()[0] == 100
        wire.send(sent[-15:])
        assert wire.response()[0] == 200


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"null", b"[]", b"\xff\xfe", b'{"inputs": "\xc3"}', b'{"inputs": "\\ud800"}',
        b"[" * 100_000, b'{"inputs":' * 50_000, b'{"inputs": ' + b"9" * 5000 + b"}",
        b'{"inputs": [[1e999]]}', b'{"inputs": "a", "inputs": [5, "b"]}', b'{"inputs": [[-1]]}',
        b'{"inputs": [[99999999999]]}', b'{"inputs": [[]]}',
    ],
    ids=range(15),
)  # fmt: skip
def test_malformed_bodies_are_the_client_s_fault_in_every_family(body) -> None:
    with started() as server, Wire(server.port) as wire:
        for path, field in (
            ("/v1/embeddings", b"input"), ("/embed", b"inputs"), ("/rerank", b"texts"),
            ("/v1/rerank", b"documents"), ("/encode", b"texts"), ("/score", b"pairs"),
        ):  # fmt: skip
            wire.send(request(path, body.replace(b'"inputs"', b'"%b"' % field)))
            status, _, answer = wire.response()
            assert 400 <= status < 500 and status != 429, (path, answer)
            assert "error" in json.loads(answer)
        nothing_left(server)
        assert not server.reports.errors


def test_random_bytes_never_end_the_server() -> None:
    rng = random.Random(7)
    valid = [embed(), request("/v1/embeddings", b'{"input": ["a", "b"]}', "X-Request-ID: abc"),
             b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
             b'Transfer-Encoding: chunked\r\n\r\nf\r\n{"inputs": "a"}\r\n0\r\n\r\n']  # fmt: skip
    with started(header_timeout=0.5, body_timeout=0.5, idle_timeout=0.5) as server:
        wires: list[Wire] = []
        for _ in range(300):
            data = bytearray(rng.choice(valid) * rng.randrange(1, 3))
            for _ in range(rng.randrange(1, 6)):
                at = rng.randrange(len(data))
                match rng.randrange(3):
                    case 0:
                        data[at] = rng.randrange(256)
                    case 1:
                        del data[at : at + rng.randrange(1, 20)]
                    case _:
                        data[at:at] = rng.randbytes(rng.randrange(1, 20))
            wire = Wire(server.port)
            cut = rng.randrange(len(data) + 1)
            wire.send(bytes(data[:cut]))
            wire.send(bytes(data[cut:]))
            if rng.random() < 0.2:
                reset(wire)
            else:
                wires.append(wire)
        for wire in wires:  # an answer, or an end, but no silence
            while wire.more():
                pass
            wire.socket.close()
        nothing_left(server)
        assert server.get("/health").status_code == 200
        assert not any(status >= 500 for status in server.statuses)
        assert not server.reports.errors, server.reports.errors


# Time


def test_past_its_deadline_a_request_fails_and_is_not_computed() -> None:
    with started(timeout=4.0) as server, spied() as spy:
        with Wire(server.port) as first, Wire(server.port) as second, Wire(server.port) as third:
            spy.hold()
            first.send(embed("first"))
            spy.busy()
            waits(server, second, embed("second"))
            waits(server, third, request("/v1/embeddings", b'{"input": "third"}'))
            for wire in (first, second):
                status, _, body = wire.response()
                assert status == 504 and json.loads(body)["error_type"] == "Backend"
            status, _, body = third.response()
            assert status == 504 and json.loads(body)["error"]["code"] == "timeout"
            spy.gate.set()
            nothing_left(server)
            third.send(embed("again"))
            assert third.response()[0] == 200
        assert spy.texts == 2, "the first, which had begun, and the last"


def test_a_request_can_have_a_deadline_of_its_own(held) -> None:
    server, spy, first = held
    with Wire(server.port) as wire:
        # Not waited for in the queue: it may be out again before anybody looks.
        wire.send(request("/encode", b'{"texts": ["a"], "timeout": 0.2}'))
        assert wire.response()[0] == 504
        spy.gate.set()
        assert first.response()[0] == 200
        assert spy.texts == 1


# The device


def test_an_exception_fails_its_batch_and_no_other(held) -> None:
    server, spy, first = held

    def fail(lengths: list[int]) -> None:
        if len(lengths) == 3:
            raise ValueError(f"a kernel that quotes {SECRET}")

    spy.fail = fail
    wires = [Wire(server.port) for _ in range(3)]
    for wire, path in zip(wires, ("/embed", "/v1/embeddings", "/encode"), strict=True):
        field = {"/embed": "inputs", "/v1/embeddings": "input", "/encode": "texts"}[path]
        value = [SECRET] if path == "/encode" else SECRET
        waits(server, wire, request(path, json.dumps({field: value}).encode()))
    spy.gate.set()
    assert first.response()[0] == 200, "the batch before is not concerned"
    for wire, want in zip(wires, (424, 500, 500), strict=True):
        status, headers, body = wire.response()
        assert status == want
        assert SECRET.encode() not in body and b"ValueError" not in body
        assert headers["x-request-id"].encode() in body
        wire.socket.close()
    assert server.get("/health").status_code == server.get("/ready").status_code == 200
    assert server.post("/embed", {"inputs": "after"}).status_code == 200
    assert len(server.reports.errors) == 3
    assert all(isinstance(error, ComputeError) for _, error in server.reports.errors)
    assert [b.error for b in server.reports.batches if b.error] == ["ValueError"]
    nothing_left(server)


def test_out_of_memory_splits_the_batch_and_one_text_fails_alone(held) -> None:
    server, spy, first = held

    def fail(lengths: list[int]) -> None:
        if sum(lengths) > 120:
            raise torch.OutOfMemoryError("no room")

    spy.fail = fail
    wires = [Wire(server.port) for _ in range(9)]
    for i, wire in enumerate(wires[:8]):
        waits(server, wire, request("/embed", json.dumps({"inputs": f"text {i}"}).encode()))
    waits(server, wires[8], embed("word " * 150))
    with pytest.warns(RuntimeWarning, match="out of memory"):
        spy.gate.set()
        assert first.response()[0] == 200
        answers = [wire.response() for wire in wires]
    status, _, body = answers.pop()
    assert status == 413 and "does not fit the device" in json.loads(body)["error"]
    assert sum(len(lengths) > 1 for lengths, _ in spy.batches) > 1, "it was split"
    want = tiny().encode([f"text {i}" for i in range(8)], sparse=False, colbert=False).dense
    for row, (status, _, body) in zip(want, answers, strict=True):
        assert status == 200, "the same batch, less what does not fit"
        np.testing.assert_allclose(json.loads(body)[0], row, rtol=0, atol=5e-6)
    assert server.get("/health").status_code == 200
    assert server.post("/embed", {"inputs": "after"}).status_code == 200
    nothing_left(server)
    for wire in wires:
        wire.socket.close()


@pytest.mark.parametrize("how", [RuntimeError, SystemExit])
def test_a_device_that_is_dead_is_said_and_nobody_hangs(held, how) -> None:
    server, spy, first = held

    def fail(_lengths: list[int]) -> None:
        raise how(SECRET)  # every batch from now on, so the one that tries the device as well

    with Wire(server.port) as second, Wire(server.port) as third:
        waits(server, second, embed("second"))
        waits(server, third, request("/v1/embeddings", json.dumps({"input": ["x"] * 900}).encode()))
        spy.fail = fail
        spy.gate.set()
        statuses = {wire.response()[0] for wire in (first, second, third)}
        assert statuses <= {424, 500, 503}
        eventually(lambda: server.get("/health").status_code == 503)
        assert SECRET not in server.get("/health").text
        assert "died" in server.get("/health").json()["reason"]
        assert server.get("/ready").status_code == 503
        assert server.get("/metrics").status_code == 200
        computed = len(spy.batches)
        spy.fail = None
        for path in ("/embed", "/v1/embeddings", "/v1/rerank", "/encode"):
            assert server.post(path, {}).status_code == 503
        assert len(spy.batches) == computed
        nothing_left(server)
    assert server.stop() == 0


def test_a_device_that_stalls_is_said_and_waited_for() -> None:
    with started(stall_timeout=1.0) as server, spied() as spy, Wire(server.port) as wire:
        spy.hold()
        wire.send(embed())
        eventually(lambda: server.get("/health").status_code == 503)
        assert "has not ended" in server.get("/health").json()["reason"]
        assert server.post("/embed", {"inputs": "a"}).status_code == 503
        spy.gate.set()
        assert wire.response()[0] == 200
        eventually(lambda: server.get("/health").status_code == 200)  # the answer came first
        assert server.post("/embed", {"inputs": "a"}).status_code == 200


def test_nothing_of_a_text_is_logged(held) -> None:
    """Not even by a fault in the server itself."""
    server, spy, _ = held
    lines: list[str] = []
    write = server.reports.logs._send

    def send(data: bytes) -> int:
        lines.append(data.decode())
        return write(data)

    server.reports.logs._send = send
    spy.gate.set()
    service = server.service
    encode = service.engine.submit

    async def submit(texts, **options):
        raise KeyError(texts)

    service.engine.submit = submit
    found = server.post("/embed", {"inputs": SECRET})
    assert found.status_code == 500 or found.status_code == 424
    assert SECRET not in found.text and "internal error" in found.text
    assert server.get(f"/{SECRET}?{SECRET}").status_code == 404
    service.engine.submit = encode
    with Wire(server.port) as wire:
        wire.send(request("/embed", b'{"inputs": "%b"' % SECRET.encode()))
        assert wire.response()[0] == 422
    eventually(lambda: "".join(lines).count('"request"') >= 3)
    assert SECRET not in "".join(lines)
