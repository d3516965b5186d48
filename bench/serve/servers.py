"""Servers and their client for the suite `serve`, each in a process of its own."""

from __future__ import annotations

import base64
import contextlib
import http.client
import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from bench.core import child
from bench.core.measure import OURS, Absent
from bench.core.paths import ROOT
from bench.peers import encoders, infinity

FLAG, SENTENCE = "FlagEmbedding", "sentence-transformers"
STAND_IN = "m3fast behind FastAPI"  # in a peer's place where a smoke test has no time for one
INFINITY = "infinity-emb"
PACKAGES = {FLAG: "FlagEmbedding", SENTENCE: "sentence_transformers"}
MODEL = "bench"  # what requests call it
STARTING = 180.0  # seconds: imports of FlagEmbedding alone take ten
# Texts that a peer behind FastAPI takes from its queue at once: ahead of 1, which is what a lock
# does, at 64 clients and no slower for one.
TOGETHER = 256
INFINITY_CLI = "from infinity_emb.cli import cli; cli()"


@dataclass(frozen=True)
class Requests:
    """What is sent, as texts and as bytes.

    Attributes:
        inputs: of each request: one text, or a list of them.
        outputs: dense through /v1/embeddings in base64, or else through /encode as safetensors.
    """

    inputs: Sequence[str | list[str]]
    outputs: tuple[str, ...] = ("dense",)

    def texts(self) -> list[str]:
        """All of them, in order."""
        return [t for i in self.inputs for t in ([i] if isinstance(i, str) else i)]

    def raw(self) -> list[str]:
        """Whole HTTP requests, in ASCII."""
        dense = self.outputs == ("dense",)
        found = []
        for given in self.inputs:
            if dense:
                path = "/v1/embeddings"
                body: dict[str, Any] = {"model": MODEL, "input": given, "encoding_format": "base64"}
            else:
                path = "/encode"
                wanted = {name: name in self.outputs for name in encoders.KEYS}
                listed = [given] if isinstance(given, str) else given
                body = {"model": MODEL, "texts": listed, "format": "safetensors", **wanted}
            sent = json.dumps(body)
            found.append(
                f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(sent)}\r\n\r\n{sent}"
            )
        return found

    def answer(self, body: bytes) -> encoders.Encoded:
        """The encodings in a response, as FlagEmbedding has them."""
        if self.outputs == ("dense",):
            data = sorted(json.loads(body)["data"], key=lambda each: each["index"])
            rows = [np.frombuffer(base64.b64decode(each["embedding"]), "<f4") for each in data]
            return {"dense_vecs": np.stack(rows)}
        found = safetensors.numpy.load(body)
        ends = found["sparse_indptr"].tolist()
        rows = [
            dict(zip(map(str, i.tolist()), v.tolist(), strict=True))
            for i, v in zip(
                np.split(found["sparse_indices"], ends[1:-1]),
                np.split(found["sparse_values"], ends[1:-1]),
                strict=True,
            )
        ]
        vectors = np.split(found["colbert_values"], found["colbert_offsets"][1:-1])
        return {
            "dense_vecs": found["dense"],
            "lexical_weights": rows,
            "colbert_vecs": vectors,
        }


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


@dataclass(frozen=True)
class Ran:
    """What came of one job of the client.

    Attributes:
        seconds: latencies in the order of answers; elapsed: from the first request to the last
            answer; rate: answers per second of the time that was asked for.
        late: 99th percentile of how late requests of an open loop were sent.
        client, server: CPU seconds; requests: how many they are for.
        bodies: of some requests, by number.
    """

    seconds: list[float]
    elapsed: float
    rate: float
    late: float
    client: float
    server: float
    requests: int
    bodies: dict[int, bytes] = field(repr=False)


class Client:
    """The load generator's process."""

    def __init__(self) -> None:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        self._talk = child.Talk(
            [sys.executable, "-P", "-m", "bench.serve.child_client"], environment, 2 * STARTING
        )
        self._loaded: Requests | None = None

    def load(self, requests: Requests) -> None:
        """What the next jobs send; it must be before a job starts, for it takes a while."""
        if self._loaded is requests:
            return
        with tempfile.NamedTemporaryFile("w", encoding="ascii", suffix=".json") as file:
            json.dump(requests.raw(), file)
            file.flush()
            self._talk.ask({"load": file.name})
        self._loaded = requests

    def run(self, server: Server, **job: Any) -> Ran:
        """One job; see bench/serve/child_client.py.

        Raises:
            RuntimeError: an answer was not 200, or did not come.
        """
        self.begin(server, **job)
        return self.end()

    def begin(self, server: Server, **job: Any) -> None:
        defaults = {"run": "closed", "connections": 1, "keep": []}
        self._talk.tell(defaults | {"port": server.port, "clocks": [server.clock]} | job)

    def end(self, stop: bool = False) -> Ran:
        """What came of it, once it is over.

        Args:
            stop: end one without a time or a count.
        """
        if stop:
            self._talk.tell({"stop": True})
        said = self._talk.hear()
        if "error" in said:
            raise RuntimeError(said["error"])
        bodies = {int(n): base64.b64decode(body) for n, body in said["bodies"].items()}
        return Ran(
            said["seconds"], said["elapsed"], said["rate"], said["late"], said["own_cpu"],
            said["cpu"][0], len(said["seconds"]), bodies,
        )  # fmt: skip

    def close(self) -> None:
        self._talk.close()


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Instants of a Poisson process: what callers who know nothing of each other make."""
    random = np.random.default_rng(seed)
    gaps = random.exponential(1 / rate, max(1, round(rate * seconds)))
    return np.cumsum(gaps).tolist()
