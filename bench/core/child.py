"""Python processes of their own, for what needs a fresh one: imports, loads, peak memory, crashes,
and packages that need other versions than ours.
"""

from __future__ import annotations

import base64
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.core.measure import Absent
from bench.core.paths import ROOT


def run(module: str, *arguments: str, timeout: float = 900, threads: int | None = None) -> str:
    """Standard output of `python -m module arguments`, with the repository importable.

    Raises:
        Absent: the child says what it lacks, or a signal killed it.
        RuntimeError: it failed otherwise.
    """
    return python("-m", module, *arguments, timeout=timeout, threads=threads)


def python(*arguments: str, timeout: float = 900, threads: int | None = None) -> str:
    """Standard output of a fresh interpreter with src/ and the repository on its path.

    Args:
        threads: of torch and MKL; None for what the environment says.
    """
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path.rstrip(os.pathsep), "PYTHONSAFEPATH": "1"}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    done = subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    said = done.stderr.strip().splitlines()[-1:] or [""]
    if done.returncode < 0:
        raise Absent(f"killed by signal {-done.returncode}")
    if said[0].startswith("absent: "):
        raise Absent(said[0].removeprefix("absent: "))
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)[:80]}: {said[0]}")
    return done.stdout


class Talk:
    """A process that answers one line of JSON with another, so that its turns can interleave.

    It begins with a line of its own, `hello`, once it is ready.

    Raises:
        RuntimeError: it ended, or was silent for `timeout` seconds.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], timeout: float = 300
    ) -> None:
        self._timeout = timeout
        # Not a pipe: nobody reads it, and it would fill up.
        self._said = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
        )
        try:
            self.hello = self.hear()
        except Exception:
            self.close()
            raise

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        self.tell(question)
        return self.hear()

    def tell(self, question: dict[str, Any]) -> None:
        """Ask, and `hear` the answer later."""
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise RuntimeError(self._last_words()) from None

    def hear(self) -> dict[str, Any]:
        stdout = self._process.stdout
        assert stdout
        if not select.select([stdout], [], [], self._timeout)[0]:
            raise RuntimeError(f"silent for {self._timeout:g} s")
        line = stdout.readline()
        if not line:
            raise RuntimeError(self._last_words())
        return json.loads(line)

    def _last_words(self) -> str:
        status = self._process.wait(self._timeout)
        self._said.seek(0)
        said = self._said.read().decode(errors="replace").strip().splitlines()
        return f"exit status {status}: {''.join(said[-1:])}"

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._said.close()


class Stopwatch:
    """`watch` of `measure.interleave` for candidates that time themselves: `took` is the sample.

    Where a candidate leaves it None, the sample is wall time.
    """

    def __init__(self) -> None:
        self.took: float | None = None

    def __call__(self) -> Callable[[], float]:
        self.took, start = None, time.perf_counter()
        return lambda: time.perf_counter() - start if self.took is None else self.took


class Warmed:
    """What has run in this session: the page cache holds its files, so nothing is warmed twice."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def first(self, name: str) -> bool:
        new = name not in self._seen
        self._seen.add(name)
        return new

    def read(self, folder: Path) -> None:
        """Bring a checkpoint's files into the page cache."""
        for file in folder.iterdir():
            if file.is_file():
                with file.open("rb") as source:
                    while source.read(1 << 24):
                        pass


WARMED = Warmed()


def pack(array: np.ndarray) -> dict[str, Any]:
    """An array for a line of JSON."""
    array = np.ascontiguousarray(array, np.float32)
    return {"shape": array.shape, "base64": base64.b64encode(array).decode()}


def unpack(packed: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(packed["base64"]), np.float32).reshape(packed["shape"])
