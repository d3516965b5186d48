"""Clients that leave, do not read, or send what is no request."""

from __future__ import annotations

import json
import random
import time

import pytest
from faults import nothing_left, started, waits
from servers import PATIENCE, eventually, small
from wire import Wire, embed, request, reset

SECRET = "zanzibar"


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
    assert len(found) == 1 and len(found[0]) == small().config.hidden_size
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
