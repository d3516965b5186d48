"""A step is one process with a hard limit: past it, it says where it hangs and all of it is ended.

    runner ── step (a process group) ── its children, told by M3FAST_STEP in their environment
       └───── watcher: ends them all when the runner is gone, however it went
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gpurun.out import LOG, STEPS, Out

ROOT = Path(__file__).resolve().parents[2]
SAYS = 4.0  # seconds that a step has to say where it hangs
LEAST = 3.0  # seconds with which no step is begun
MARK = "M3FAST_STEP"
DUMP = "(most recent call first):\n"  # faulthandler's, of the main thread last
WATCHER = (
    "import signal, sys; sys.path.insert(0, sys.argv[2]); signal.signal(15, signal.SIG_IGN); "
    "signal.signal(2, signal.SIG_IGN); sys.stdin.read(); from gpurun import steps; "
    "steps.end(sys.argv[1])"
)


@dataclass(frozen=True)
class Step:
    """A command with its limit in seconds; `environment` is put over the runner's own."""

    name: str
    command: Sequence[str]
    limit: float
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What came of a step: `code` as subprocess has it, None where its time ran out."""

    name: str
    code: int | None
    seconds: float
    output: str
    why: str = ""

    @property
    def ok(self) -> bool:
        return self.code == 0

    @property
    def state(self) -> str:
        """ok, exit 1, SIGKILL, time is up, or why it is none of these."""
        if self.why:
            return self.why
        if self.code is None:
            return "time is up"
        if self.code < 0:
            with contextlib.suppress(ValueError):
                return signal.Signals(-self.code).name
        return "ok" if self.ok else f"exit {self.code}"

    @property
    def last(self) -> str:
        """The last line, or of one that was asked where it hangs, the innermost."""
        _, asked, dump = self.output.rpartition(DUMP)
        ended = self.code is None or self.code < 0 or "Timeout (" in self.output
        lines = dump.splitlines()[:1] if asked and ended else reversed(self.output.splitlines())
        return next((line.strip() for line in lines if line.strip()), "")

    def __str__(self) -> str:
        return f"{self.name:30} {self.state:>12} {self.seconds:6.1f} s  {self.last[:80]}"


class Runner:
    """Runs steps one by one or several at once, all of them within `limit` seconds.

    Args:
        out: takes the result of each step when it ends, and its output line by line.
        command: the name of what is run, for the lines of steps.jsonl.
        environment: over that of this process, for every step.
    """

    def __init__(
        self,
        out: Out,
        command: str,
        limit: float,
        environment: Mapping[str, str],
        say: Callable[[str], None] = lambda line: print(line, flush=True),
    ) -> None:
        self.out, self.command, self.say = out, command, say
        self._environment = {**os.environ, **environment}
        self._begun = time.monotonic()
        self._limit, self._mark = limit, f"{os.getpid()}-{time.time_ns()}"
        self.spare = 0.0  # seconds that the steps of this phase leave to the next
        self._count = 0
        self._watcher: subprocess.Popen[bytes] | None = None
        self.results: list[Result] = []

    def __enter__(self) -> Runner:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # what is asked where it hangs aborts
        self._watcher = subprocess.Popen(
            [sys.executable, "-c", WATCHER, self._mark, str(Path(__file__).parents[1])],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,  # else it would be ended with what it watches
        )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        end(self._mark)
        if self._watcher and self._watcher.stdin:
            self._watcher.stdin.close()
            self._watcher.wait(30)

    @property
    def left(self) -> float:
        """Seconds until nothing may run any more in this phase."""
        return self._limit - self.spare - (time.monotonic() - self._begun)

    def run(self, step: Step, keep: bool = True) -> Result:
        """Run one step; with `keep` its result is recorded, else `record` is up to the caller."""
        limit = min(step.limit, self.left)
        if limit < min(LEAST, step.limit) or limit <= 0:
            result = Result(step.name, None, 0.0, "", "not started")
        else:
            result = self._run(step, limit)
        return self.record(result) if keep else result

    def record(self, result: Result) -> Result:
        """The result into steps.jsonl, its reason into failures.txt, a line to the console."""
        self.results.append(result)
        self.out.line(
            STEPS, command=self.command, step=result.name, state=result.state,
            seconds=round(result.seconds, 1), last=result.last[:300],
        )  # fmt: skip
        if not result.ok and result.output:
            self.out.failure(f"{self.command}: {result.name}: {result.state}", result.output)
        self.say(str(result))
        return result

    def stop(self) -> None:
        """End what runs and start nothing any more."""
        self._limit = 0.0
        end(self._mark)

    def _run(self, step: Step, limit: float) -> Result:
        self._count += 1
        mark = f"{self._mark}-{self._count}"
        start = time.monotonic()
        child = subprocess.Popen(
            step.command,
            cwd=ROOT,
            env={**self._environment, **step.environment, MARK: mark, "PYTHONFAULTHANDLER": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
        lines: list[str] = []
        reader = threading.Thread(target=self._read, args=(step.name, child, lines), daemon=True)
        reader.start()
        code = _wait(child, limit)
        if code is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGABRT)  # Python prints where each thread is
            _wait(child, SAYS)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
        end(mark)  # also what a step that ended by itself left behind
        _wait(child, SAYS)  # one in the hands of a driver may stay: it is not waited for
        reader.join(SAYS)
        return Result(step.name, code, time.monotonic() - start, "".join(lines))

    def _read(self, name: str, child: subprocess.Popen[bytes], lines: list[str]) -> None:
        assert child.stdout
        for line in child.stdout:
            text = line.decode("utf-8", "replace")
            lines.append(text)
            self.out.text(LOG, f"{name} | {text.rstrip()}\n")


def _wait(child: subprocess.Popen[bytes], seconds: float) -> int | None:
    try:
        return child.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def end(mark: str) -> None:
    """Kill every process begun under a mark, in whatever group or session it is."""
    for _ in range(20):  # what was forked meanwhile is found the next time
        found = holders(f"{MARK}={mark}")
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not found:
            return
        time.sleep(0.05)


def holders(entry: str) -> list[int]:
    """Living processes whose environment has this entry, or one that goes on from it with "-"."""
    sought = entry.encode()
    found: list[int] = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            values = (folder / "environ").read_bytes().split(b"\0")
            gone = (folder / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
        except OSError:  # it has ended, or is another's
            continue
        if not gone and any(v == sought or v.startswith(sought + b"-") for v in values):
            found.append(int(folder.name))
    return found
