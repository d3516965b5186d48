"""Deadlines, batches that fail, and devices that die or stall."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from faults import nothing_left, spied, started, waits
from servers import eventually, small
from wire import Wire, embed, request

from m3fast.errors import ComputeError

SECRET = "zanzibar"


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
    want = small().encode([f"text {i}" for i in range(8)], sparse=False, colbert=False).dense
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
