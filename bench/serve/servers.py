"""Servers of the suite `serve`, each in a process of its own."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from bench.core.measure import OURS, Absent
from bench.core.paths import ROOT
from bench.peers import infinity
from bench.serve.requests import MODEL

FLAG, SENTENCE = "FlagEmbedding", "sentence-transformers"
STAND_IN = "m3fast behind FastAPI"  # in a peer's place where a smoke test has no time for one
INFINITY = "infinity-emb"
PACKAGES = {FLAG: "FlagEmbedding", SENTENCE: "sentence_transformers"}
STARTING = 180.0  # seconds: imports of FlagEmbedding alone take ten
# Texts that a peer behind FastAPI takes from its queue at once: ahead of 1, which is what a lock
# does, at 64 clients and no slower for one.
TOGETHER = 256
INFINITY_CLI = "from infinity_emb.cli import cli; cli()"


class Server:
    """One server that was started; `wait` until it answers.

    Attributes:
        clock: the id of its CPU time, for `time.clock_gettime` of any process.
        note: what it says of itself in its first line.

    Raises:
        Absent: it is not installed.
    """

    def __init__(
        self, name: str, path: Path, threads: int, dtype: str = "float32", most: int = TOGETHER
    ) -> None:
        self.name, self.note = name, ""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        command = _command(name, path, self.port, threads, dtype, most)
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - nobody reads a pipe meanwhile
        self._process = subprocess.Popen(
            command,
            env=_environment(name, threads),
            cwd=tempfile.gettempdir(),  # infinity-emb leaves a folder where it is started
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=subprocess.STDOUT,
        )
        self.clock = (~self._process.pid << 3) | 2

    def wait(self, request: str) -> None:
        """Until it answers this request.

        Raises:
            Absent: it lacks a package.
            RuntimeError: it ended, or does not answer.
        """
        end = time.monotonic() + STARTING
        while not self._answers(request):
            if (status := self._process.poll()) is not None:
                last = self._lines()[-1:] or [""]
                if last[0].startswith("absent: "):
                    raise Absent(last[0].removeprefix("absent: "))
                raise RuntimeError(f"exit status {status}: {last[0][:100]}")
            if time.monotonic() > end:
                raise RuntimeError(f"no answer in {STARTING:g} s")
            time.sleep(0.05)
        if self.name in (FLAG, SENTENCE):
            self.note = next((x for x in self._lines() if x.startswith("batches of")), "")

    def _answers(self, request: str) -> bool:
        head, _, body = request.partition("\r\n\r\n")
        path = head.split()[1]
        its = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(its):
            its.request("POST", path, body, {"Content-Type": "application/json"})
            answer = its.getresponse()
            answer.read()
            return answer.status == 200
        return False

    def _lines(self) -> list[str]:
        self._said.seek(0)
        return self._said.read().decode(errors="replace").strip().splitlines()

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._said.close()


def _command(name: str, path: Path, port: int, threads: int, dtype: str, most: int) -> list[str]:
    ours = [sys.executable, "-P", "-m"]
    if name == OURS:
        return [
            *ours, "m3fast", "serve", str(path), "--port", str(port), "--dtype", dtype,
            "--device", "cpu", "--served-model-name", MODEL,
        ]  # fmt: skip
    if name == INFINITY:
        if not infinity.PYTHON.exists():
            raise Absent("not installed: make bench-peers")
        if not any(infinity.PYTHON.parents[1].glob("lib/*/site-packages/uvicorn")):
            raise Absent("its server is not installed: make bench-peers")
        return [
            str(infinity.PYTHON), "-P", "-c", INFINITY_CLI, "v2", "--model-id",
            str(infinity.folder(path)), "--served-model-name", MODEL, "--engine", "torch",
            "--device", "cpu", "--dtype", "float32", "--no-bettertransformer",
            "--no-model-warmup", "--no-vector-disk-cache", "--url-prefix", "/v1",
            "--host", "127.0.0.1", "--port", str(port), "--log-level", "warning",
        ]  # fmt: skip
    if name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None:
        raise Absent(f"No module named '{PACKAGES[name]}'")
    way = OURS if name == STAND_IN else name
    return [*ours, "bench.serve.child_server", way, str(path), str(port), str(threads), str(most)]


def _environment(name: str, threads: int) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if name != INFINITY:
        kept["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    return kept | {
        "OMP_NUM_THREADS": str(threads),
        "RAYON_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
    }


def start(
    names: Iterable[str], path: Path, threads: int, dtype: str, request: str
) -> tuple[dict[str, Server], dict[str, str]]:
    """Start servers at once and wait for all; those that answer, and why the others do not."""
    running: dict[str, Server] = {}
    absent: dict[str, str] = {}
    for name in names:
        try:
            running[name] = Server(name, path, threads, dtype)
        except Absent as reason:
            absent[name] = str(reason)
    for name in list(running):
        try:
            running[name].wait(request)
        except (Absent, RuntimeError) as error:
            running.pop(name).close()
            if name == OURS:
                for other in running.values():
                    other.close()
                raise
            absent[name] = str(error) if isinstance(error, Absent) else f"failed: {error}"
    return running, absent
