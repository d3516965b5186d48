"""Steps that fail in every way we know, and what each must leave in the folder of results."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

from gpurun import out as out_
from gpurun import plans
from gpurun.out import Out
from gpurun.plans import Phase, Plan
from gpurun.shards import Shard
from gpurun.steps import Step, holders

SLEEP = "import time; time.sleep(600)"
# A child in a session of its own, and its child in another.
HANGS = f"""
import subprocess, sys, time
def waits_here():
    time.sleep(600)
again = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', '{SLEEP}'], " \\
    "start_new_session=True); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", again], start_new_session=True)
print("three processes", flush=True)
waits_here()
"""
DEAF = """
import faulthandler, signal, time
faulthandler.disable()
signal.signal(signal.SIGABRT, signal.SIG_IGN)
print("deaf", flush=True)
time.sleep(600)
"""
MEMORY = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
x = bytearray(1 << 32)
"""
KILLED = "import os; print('before', flush=True); os.kill(os.getpid(), 9)"
LEAVES = f"""
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "{SLEEP}"], start_new_session=True)
print("done")
"""
# name: (code, state, what failures.txt says of it)
PLANTED = {
    "hangs": (HANGS, "time is up", "in waits_here"),
    "deaf": (DEAF, "time is up", "deaf"),
    "memory": (MEMORY, "exit 1", "MemoryError"),
    "killed": (KILLED, "SIGKILL", "before"),
    "fails": ("raise ValueError('planted')", "exit 1", "ValueError: planted"),
    "leaves": (LEAVES, "ok", ""),
    "passes": ("print('fine')", "ok", ""),
}
TESTS = """
    import os, time
    import pytest

    def test_passes(): pass
    def test_fails(): assert {"a": 1} == {"a": 2}
    def test_hangs(): time.sleep(600)
    def test_after_the_hang(): pass
    def test_crashes(): os.abort()
    @pytest.mark.skip(reason="as planted")
    def test_skipped(): pass
    def test_loses_the_context(): raise RuntimeError("CUDA error: an illegal memory access")
    @pytest.fixture
    def broken(): raise OSError("no fixture")
    def test_error(broken): pass
    def test_last(): pass
"""
OUTCOMES = {
    "passes": "passed", "fails": "failed", "hangs": "hung", "after_the_hang": "passed",
    "crashes": "crashed", "skipped": "skipped", "loses_the_context": "failed", "error": "failed",
    "last": "passed",
}  # fmt: skip
TOLD = ["assert {'a': 1} == {'a': 2}", "in test_hangs", "in test_crashes", "illegal memory access",
        "no fixture"]  # fmt: skip


RUNNER = """
import sys
from pathlib import Path
from gpurun.out import Out
from gpurun.steps import Runner, Step
folder, mark, hangs = sys.argv[1:]
with Runner(Out(Path(folder)), "killed", 600, {"M3FAST_PLANTED": mark}) as runner:
    runner.run(Step("first", (sys.executable, "-c", "print('kept')"), 30))
    runner.run(Step("second", (sys.executable, "-c", hangs), 600))
"""


def plan(folder: Path, seconds: float) -> Plan:
    """Every step and every test, with `seconds` for what hangs."""
    file = folder / "test_planted.py"
    file.write_text(textwrap.dedent(TESTS), encoding="utf-8")
    steps = [Step(name, (sys.executable, "-c", code), seconds if state == "time is up" else 30)
             for name, (code, state, _) in PLANTED.items()]  # fmt: skip
    shard = Shard("tests", (str(file), f"--rootdir={folder}", "-c", "/dev/null"), 120, each=seconds)
    return Plan("planted", 300, (Phase((*steps, shard), at_once=2),), ("as planted",))


def environment(folder: Path) -> dict[str, str]:
    """By which the processes of one run are known."""
    return {**plans.environment(), "M3FAST_PLANTED": str(folder)}


def missing(out: Out, folder: Path) -> list[str]:
    """What a run of `plan` should have left in `out`, or ended, and has not."""
    states = {line["step"]: line["state"] for line in out.lines(out_.STEPS) if "step" in line}
    expected = {name: state for name, (_, state, _) in PLANTED.items()}
    expected |= {"tests": "exit 1"}
    outcomes = {line["test"].partition("::test_")[2]: line["outcome"]
                for line in out.lines(out_.TESTS) if "test" in line}  # fmt: skip
    said = [f"{name}: {found.get(name)}, not {state}"
            for found, wanted in ((states, expected), (outcomes, OUTCOMES))
            for name, state in wanted.items() if found.get(name) != state]  # fmt: skip
    failures = out.path(out_.FAILURES).read_text(encoding="utf-8")
    reasons = [why for _, _, why in PLANTED.values()] + TOLD
    said += [f"{out_.FAILURES} does not tell of {why!r}" for why in reasons if why not in failures]
    text = out.path(out_.TABLE).read_text(encoding="utf-8")
    words = ("not well: ", "hangs: time is up: File", "in waits_here", "test_hangs: hung")
    said += [f"{out_.TABLE} does not say {word!r}" for word in words if word not in text]
    return said + unfit(out) + alive(folder)


def unfit(out: Out) -> list[str]:
    """What is wrong with the files of a folder."""
    said = [f"{path.name} is no result" for path in out.folder.iterdir()
            if path.name not in out_.FILES]  # fmt: skip
    said += [f"{path.name} is too large" for path in out.folder.iterdir()
             if path.stat().st_size >= 16 << 20]  # fmt: skip
    tables = out.path(out_.TABLE).read_text(encoding="utf-8").split(out_.BETWEEN)
    return said + [f"{out_.TABLE}: {len(t)} characters" for t in tables if len(t) > 12_000]


def alive(folder: Path) -> list[str]:
    return [f"process {pid} lives on" for pid in holders_of(folder)]


def killed(folder: Path) -> list[str]:
    """What a runner that is killed in the middle of a step should have left, or ended."""
    out, mark = Out(folder), str(folder)
    command = [sys.executable, "-c", RUNNER, str(folder), mark, HANGS]
    runner = subprocess.Popen(command, env={**os.environ, **plans.environment()},
                              stdout=subprocess.DEVNULL)  # fmt: skip
    _until(lambda: "three processes" in _text(out, out_.LOG) and len(holders_of(folder)) >= 3)
    runner.kill()
    runner.wait()
    _until(lambda: not holders_of(folder))
    states = [(line["step"], line["state"]) for line in out.lines(out_.STEPS)]
    said = [] if states == [("first", "ok")] else [f"steps.jsonl has {states}"]
    said += [] if "kept" in _text(out, out_.LOG) else ["log.txt has no output of the first"]
    return said + alive(folder)


def holders_of(folder: Path) -> list[int]:
    return holders(f"M3FAST_PLANTED={folder}")


def _text(out: Out, name: str) -> str:
    file = out.path(name)
    return file.read_text(encoding="utf-8") if file.exists() else ""


def _until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
