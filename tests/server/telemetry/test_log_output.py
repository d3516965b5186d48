"""Nothing waits for stderr, and lines that are lost are counted."""

import fcntl
import json
import os
import subprocess
import sys
import threading
import time

import pytest
from logpipe import Log, record
from servers import PATIENCE, Server, eventually, free_port

from m3fast.server.telemetry.logs import LINES
from m3fast.server.telemetry.telemetry import Telemetry

pytestmark = pytest.mark.slow


def in_time(work, seconds: float = 30.0) -> None:
    """Run it in a thread; fail where it hangs."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "it hangs"


@pytest.mark.parametrize("blocking", [True, False])
def test_a_blocked_stderr_holds_nothing_up_and_lost_lines_are_counted(blocking):
    log = Log()
    os.set_blocking(log.telemetry.logs._fd, blocking)
    count = 3 * LINES

    def work() -> None:
        for _ in range(count):
            log.telemetry.finished(record())

    in_time(work)
    assert log.telemetry.logs.dropped > 0
    in_time(log.telemetry.close)
    os.close(log.reading)


def test_lines_come_again_and_tell_how_many_were_lost():
    log = Log()
    for _ in range(3 * LINES):
        log.telemetry.finished(record())
    lost = log.telemetry.logs.dropped
    assert lost > 0
    found: list[bytes] = []

    def read() -> None:
        while part := os.read(log.reading, 1 << 16):
            found.append(part)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    deadline = time.monotonic() + 20
    while b"log_lines_dropped" not in b"".join(found) and time.monotonic() < deadline:
        log.telemetry.finished(record(route="/later"))
        time.sleep(0.01)
    log.telemetry.close()
    reader.join(20)
    lines = [json.loads(line) for line in b"".join(found).splitlines()]
    told = sum(line["lines"] for line in lines if line["event"] == "log_lines_dropped")
    assert told == log.telemetry.logs.dropped >= lost
    assert lines[-1]["route"] == "/later"


@pytest.mark.parametrize("how", ["reader gone", "never open"])
def test_a_stderr_that_is_closed_kills_nothing(how):
    if how == "reader gone":
        log = Log()
        os.close(log.reading)
        telemetry = log.telemetry
    else:
        telemetry = Telemetry(fd=os.dup(2) + 100)
    for _ in range(100):
        telemetry.finished(record())
    in_time(telemetry.close)
    assert telemetry.logs.dropped == 100


@pytest.mark.parametrize("how", ["nobody reads", "reader gone", "never open"])
def test_a_process_whose_stderr_is_no_good_serves_and_ends(how):
    with free_port() as port:
        serve_and_end(how, port)


def serve_and_end(how: str, port: int) -> None:
    command = [sys.executable, "-m", "m3fast", "serve", "m3fast-tiny", "--port", str(port)]
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    if how == "reader gone":
        os.close(reading)
    shell = ["sh", "-c", 'exec "$@" 2>&-', "sh"] if how == "never open" else []
    child = subprocess.Popen([*shell, *command], stderr=writing)
    os.close(writing)
    server = Server(port)
    try:
        server.until_ready()
        for _ in range(100):
            assert server.post("/embed", {"inputs": "a"}).status_code == 200
        if how != "nobody reads":  # what it cannot write at once is kept for later
            lost = 'm3fast_telemetry_dropped{what="log_lines"} '
            eventually(lambda: float(server.get("/metrics").text.split(lost)[1].split()[0]) > 90)
        child.terminate()
        assert child.wait(PATIENCE) == 0
    finally:
        child.kill()
        child.wait(PATIENCE)
        server.client.close()
        if how != "reader gone":
            os.close(reading)
