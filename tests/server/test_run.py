"""Starting and stopping: what is wrong is said at once, what was admitted is answered."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import signal
import socket
import ssl
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from faults import Recording, Wire, certificate, embed, request, spied, started
from servers import PATIENCE, eventually, free_port, tiny

from m3fast.cli import main
from m3fast.errors import CheckpointError, ComputeError, InputError
from m3fast.server.http import listen
from m3fast.server.run import Server
from m3fast.server.settings import Settings


def never():
    pytest.fail("the model is loaded though the server cannot start")


def test_a_port_in_use_is_said() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"^port: {port} is in use on 127.0.0.1$"):
            Server(never, Settings(port=port))


@pytest.mark.parametrize(
    ("host", "found"),
    [("192.0.2.1", "an address of this machine"), ("no such host", "a name or an address")],
)
def test_a_host_that_is_not_ours_is_said(host, found) -> None:
    with pytest.raises(InputError, match=f"^host: expected {found}, found '{host}'$"):
        Server(never, Settings(host=host, port=0))


def test_all_addresses_of_a_name_share_a_port() -> None:
    sockets = listen.listen("localhost", 0)
    with contextlib.ExitStack() as stack:
        for each in sockets:
            stack.enter_context(each)
        assert len({each.getsockname()[1] for each in sockets}) == 1
        assert listen.url_of(sockets, True).startswith("https://")


def test_connections_fit_the_limit_on_files() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (600, before[1]))
        assert listen.room_for(500) == 500
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 500 + listen.SPARE_FILES
        if before[1] != resource.RLIM_INFINITY:
            assert listen.room_for(10 * before[1]) == before[1] - listen.SPARE_FILES
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_files_for_tls_are_checked_first(tmp_path) -> None:
    cert, key = certificate(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    _, wrong = certificate(other)
    locked = tmp_path / "locked.pem"
    subprocess.run(
        ["openssl", "rsa", "-in", key, "-out", locked, "-aes256", "-passout", "pass:secret"],
        check=True, capture_output=True,
    )  # fmt: skip
    text = tmp_path / "text.pem"
    text.write_text("no certificate")
    for found, said in (
        ((tmp_path / "none.pem", key), r"tls_cert: cannot read '.*none.pem': No such file"),
        ((cert, tmp_path), r"tls_key: cannot read '.*': Is a directory"),
        ((text, key), r"tls_cert, tls_key: expected a PEM certificate and its key .*text.pem"),
        ((cert, wrong), r"tls_cert, tls_key: .*KEY_VALUES_MISMATCH"),
        ((cert, locked), r"tls_cert, tls_key: expected .* without a password"),
    ):
        with pytest.raises(InputError, match=said):
            Server(never, Settings(port=0, tls_cert=found[0], tls_key=found[1]))


def test_tls(tmp_path) -> None:
    cert, key = certificate(tmp_path)
    reports = Recording()
    settings = Settings(port=0, tls_cert=cert, tls_key=key, header_timeout=4.0)
    server = Server(tiny, settings, reports)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        context = ssl.create_default_context(cafile=cert)
        with httpx.Client(base_url=server.url, verify=context) as client:
            assert server.url.startswith("https://")
            eventually(lambda: client.get("/ready").status_code == 200)
            assert len(client.post("/embed", json={"inputs": "a"}).json()) == 1
        port = int(server.url.rsplit(":", 1)[1])
        with Wire(port) as plain:
            plain.send(request("/"))
            assert plain.ended
        with Wire(port) as silent:
            assert silent.ended, "a handshake that never begins is cut too"
    finally:
        server.stop()
        thread.join(PATIENCE)
    assert not thread.is_alive()


def test_it_is_alive_while_the_model_loads_and_ready_after(monkeypatch) -> None:
    monkeypatch.setattr("m3fast.server.run.gc", gc)  # as it is; see servers.py
    gate, reports = threading.Event(), Recording()

    def load():
        assert gate.wait(PATIENCE)
        return tiny()

    server = Server(load, Settings(port=0), reports)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
            assert client.get("/health").json() == {"status": "ok"}
            ready = client.get("/ready")
            assert ready.status_code == 503 and "loaded" in ready.json()["reason"]
            early = client.post("/v1/embeddings", json={"input": "a"})
            assert early.status_code == 503 and early.headers["retry-after"] == "1"
            assert early.json()["error"]["code"] == "unavailable"
            tei = client.post("/embed", json={"inputs": "a"}).json()
            assert tei["error_type"] == "Unhealthy"
            gate.set()
            eventually(lambda: client.get("/ready").status_code == 200)
            assert client.post("/v1/embeddings", json={"input": "a"}).status_code == 200
            eventually(gc.get_freeze_count)
    finally:
        gate.set()
        server.stop()
        thread.join(PATIENCE)
    assert not thread.is_alive() and gc.get_freeze_count() == 0


def run(server: Server) -> int:
    """Not in the main thread, where it would take the process over, and might end it."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(server.run).result(PATIENCE)


def test_a_load_that_fails_ends_the_server() -> None:
    def load():
        raise CheckpointError("config.json: expected a model, found none")

    server = Server(load, Settings(port=0), Recording())
    with pytest.raises(CheckpointError, match="expected a model"):
        run(server)
    with pytest.raises(ConnectionRefusedError):
        Wire(int(server.url.rsplit(":", 1)[1]))


def test_a_warm_up_that_fails_ends_the_server() -> None:
    def fail(_lengths):
        raise RuntimeError("no such kernel")

    reports = Recording()
    with spied() as spy:
        spy.fail = fail
        with pytest.raises(ComputeError, match=r"^model: the warm-up failed: RuntimeError$"):
            run(Server(tiny, Settings(port=0), reports))
    assert [name for name, _ in reports.errors] == ["warm-up"]


def test_stopped_while_loading_it_does_not_wait() -> None:
    gate, loading, codes = threading.Event(), threading.Event(), []

    def load():
        loading.set()
        gate.wait(PATIENCE)
        raise InterruptedError

    server = Server(load, Settings(port=0), Recording())
    thread = threading.Thread(target=lambda: codes.append(server.run()))
    thread.start()
    assert loading.wait(PATIENCE)
    server.stop()
    thread.join(PATIENCE / 2)
    assert codes == [0]
    gate.set()


def test_stopping_answers_what_was_admitted_and_takes_no_more() -> None:
    with started() as server, spied() as spy:
        with Wire(server.port) as idle, Wire(server.port) as begun, Wire(server.port) as admitted:
            idle.send(embed())
            assert idle.response()[0] == 200
            begun.send(embed()[:30])
            spy.hold()
            admitted.send(embed() + request("/ready"))
            spy.busy()
            server.server.stop()
            assert idle.ended, "nothing is asked there"
            with pytest.raises(ConnectionRefusedError):
                Wire(server.port)
            begun.send(embed()[30:])
            status, headers, body = begun.response()
            assert (status, headers["connection"]) == (503, "close") and b"shutting down" in body
            assert begun.ended and server.code is None
            spy.gate.set()
            status, _, body = admitted.response()
            assert status == 200 and len(json.loads(body)[0]) == tiny().config.hidden_size
            status, headers, body = admitted.response()
            assert (status, headers["connection"]) == (503, "close") and b"shutting down" in body
            assert admitted.ended
        assert server.stop() == 0


def test_a_request_that_has_begun_to_arrive_is_the_last_of_its_connection() -> None:
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    with started(app) as server, Wire(server.port) as wire:
        wire.send(request("/")[:10])
        connections = server.server.connections.open
        eventually(lambda: any(c._stage for c in list(connections)))
        server.server.stop()
        eventually(lambda: all(c._last for c in list(connections)))
        wire.send(request("/")[10:] + request("/"))
        status, headers, _ = wire.response()
        assert (status, headers["connection"]) == (204, "close") and wire.ended
        eventually(lambda: server.code == 0)


def test_stopping_has_an_end() -> None:
    with started(drain_timeout=0.3) as server, spied() as spy, Wire(server.port) as wire:
        spy.hold()
        wire.send(embed())
        spy.busy()
        server.server.stop()
        assert wire.response()[0] == 503, "failed, not dropped"
        assert wire.ended
        spy.gate.set()
        eventually(lambda: server.code is not None)


def test_a_response_that_nobody_takes_does_not_hold_the_end() -> None:
    with started(drain_timeout=0.5) as server, Wire(server.port, receive_buffer=4096) as wire:
        texts = json.dumps({"texts": ["word " * 100] * 100, "colbert": True}).encode()
        wire.send(request("/encode", texts))
        connections = server.server.connections.open
        eventually(lambda: any(c.transport.get_write_buffer_size() for c in list(connections)))
        assert server.stop() == 1


LAUNCHER = """
import sys, threading
from m3fast.server.run import serve
from m3fast.server.settings import Settings

def load():
    from m3fast import Engine
    engine = Engine.from_pretrained("m3fast-tiny", dtype="float32")
    plain, warm = engine.runner.submit, []
    def submit(*args):
        if len(warm) >= 2:
            print("computing", flush=True)
            threading.Event().wait()
        warm.append(None)
        return plain(*args)
    engine.runner.submit = submit
    return engine

def stuck():
    print("loading", flush=True)
    threading.Event().wait()

settings = Settings(port=int(sys.argv[2]), drain_timeout=600.0)
sys.exit(serve({"stuck": stuck, "load": load}[sys.argv[1]], settings))
"""


@contextlib.contextmanager
def launched(how: str):
    """A server whose device, or whose loading, never comes to an end."""
    source = str(Path(listen.__file__).parents[3])
    with free_port() as port:
        child = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, how, str(port)],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": source, "PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        try:
            yield child, port
        finally:
            child.kill()
            child.wait(PATIENCE)
            child.stdout.close()


@pytest.mark.slow
def test_a_second_signal_stops_at_once() -> None:
    with launched("load") as (child, port):
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:

            def ready():
                with contextlib.suppress(httpx.TransportError):
                    return client.get("/ready").status_code == 200

            eventually(ready)
        with Wire(port) as wire:
            wire.send(embed())
            assert child.stdout.readline() == b"computing\n"
            child.send_signal(signal.SIGTERM)

            def refused():
                try:
                    Wire(port).socket.close()
                except ConnectionRefusedError:
                    return True

            eventually(refused)
            assert child.poll() is None, "it waits for the request"
            child.send_signal(signal.SIGINT)
            assert child.wait(PATIENCE) == 1, "it has 600 s to drain"


@pytest.mark.slow
def test_a_signal_while_loading_stops_at_once() -> None:
    with launched("stuck") as (child, _):
        assert child.stdout.readline() == b"loading\n"
        child.send_signal(signal.SIGTERM)
        assert child.wait(PATIENCE) == 0


def one_line(code: int, written: str, said: str) -> None:
    lines = [line for line in written.splitlines(True) if not line.startswith("{")]
    assert code == 2 and len(lines) == 1 and said in lines[0], written
    assert "Traceback" not in written


@pytest.mark.slow
def test_the_command_fails_with_one_line() -> None:
    """After a loop and threads have begun: nothing of their ends is written either."""
    done = subprocess.run(
        [sys.executable, "-m", "m3fast", "serve", "/no/such/model", "--port", "0"],
        capture_output=True, text=True, timeout=PATIENCE,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    one_line(done.returncode, done.stderr, "found '/no/such/model', which is none of them")


def test_the_command_fails_with_one_line_where_the_port_is_in_use(capfd) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code = main(["serve", "--port", str(port)])
    said = f"m3fast: error: port: {port} is in use on 127.0.0.1\n"
    one_line(code, capfd.readouterr().err, said)
