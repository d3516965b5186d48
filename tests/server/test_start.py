"""Starting: what is wrong is an error at once, and /health answers while the model is loaded."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import socket
import ssl
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from faults import Recording, spied
from servers import PATIENCE, eventually, small
from wire import Wire, certificate, request

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
    server = Server(small, settings, reports)
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
        return small()

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
            run(Server(small, Settings(port=0), reports))
    assert [name for name, _ in reports.errors] == ["warm-up"]


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
