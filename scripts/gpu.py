"""`make gpu`: build, tests on the GPU, quick benchmarks, one table. `--sanitize`: memory and races.

Needs a Python with torch, triton, pybind11, ninja, setuptools and pytest: no venv, no registry.
Every part has a time limit, and a part that fails or hangs does not keep the next from running.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Seconds. All of them together end within 9 minutes: benchmarks take what the tests leave.
BUILD, TESTS, FILE, ALL, BENCH_FILE = 150, 300, 150, 525, 120
SANITIZED_FILE = 150
# Benchmarks of the whole encoder load and compile most: they come after those of single operations.
WHOLE = ("encode", "latency", "memory", "scaling")
AT_ONCE = 4  # test files: most of their time is Triton compiling, on the CPU
ENVIRONMENT = {
    "PYTHONPATH": str(ROOT / "src"),
    "PYTHONSAFEPATH": "1",
    "PYTHONUNBUFFERED": "1",
    "HF_HUB_OFFLINE": "1",
    "CUDA_HOME": os.environ.get("CUDA_HOME", "/usr/local/cuda"),  # nvcc may be off the PATH
}
NO_DEVICE = "import sys, torch; sys.exit(0 if torch.cuda.is_available() else 3)"
DEVICE = (
    "import torch, triton; p = torch.cuda.get_device_properties(0); print(f'{p.name}, "
    "sm_{p.major}{p.minor}, torch {torch.__version__}, triton {triton.__version__}')"
)


@dataclass
class Part:
    """What came of one command: `code` is its exit code, None where its time ran out."""

    name: str
    code: int | None
    seconds: float
    output: str

    @property
    def ok(self) -> bool:
        return self.code in (0, 5)  # 5: pytest found nothing to run

    def __str__(self) -> str:
        last = next((s for s in reversed(self.output.splitlines()) if s.strip()), "")
        state = "time is up" if self.code is None else "ok" if self.ok else f"exit {self.code}"
        return f"{self.name:34} {state:>10} {self.seconds:6.0f} s  {last[:90]}"


def run(name: str, command: Sequence[str], limit: float, **environment: str) -> Part:
    """Run a command for at most `limit` seconds, then end it and what it started."""
    start = time.monotonic()
    child = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    up = threading.Event()

    def stop() -> None:
        up.set()
        os.killpg(child.pid, signal.SIGKILL)

    timer = threading.Timer(max(limit, 0.1), stop)
    timer.start()
    try:
        output, _ = child.communicate()
    except BaseException:
        os.killpg(child.pid, signal.SIGKILL)
        raise
    finally:
        timer.cancel()
    code = None if up.is_set() else child.returncode
    return Part(name, code, time.monotonic() - start, output)


class Log:
    """Prints, and writes the same to a file."""

    def __init__(self, file: Path) -> None:
        self._file = file.open("w", encoding="utf-8")
        self._lock = threading.Lock()

    def __call__(self, text: str = "") -> None:
        with self._lock:
            print(text, flush=True)
            print(text, file=self._file, flush=True)

    def part(self, part: Part) -> Part:
        self(f"\n--- {part.name}\n{part.output.rstrip()}\n{part}")
        return part


def device(python: str) -> tuple[str, str]:
    """(what the device is, "") or ("", why there is none)."""
    found = run("device", [python, "-c", NO_DEVICE], 120)
    if found.code == 3:
        return "", "torch finds no CUDA device"
    described = run("device", [python, "-c", DEVICE], 120) if found.ok else found
    last = described.output.strip().splitlines()[-1:] or ["no answer"]
    return (last[0], "") if described.ok else ("", last[0])


def pytest(python: str, *arguments: str) -> list[str]:
    return [python, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", *arguments]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", type=Path, default=ROOT / "gpu.log")
    parser.add_argument("--sanitize", action="store_true")
    options = parser.parse_args(arguments)
    python = sys.executable
    words, why = device(python)
    if why:
        print(f"make gpu needs a CUDA device: {why}", file=sys.stderr)
        return 2
    log = Log(options.log)
    log(words)
    return sanitize(python, log) if options.sanitize else prove(python, log, options.log)


def prove(python: str, log: Log, file: Path) -> int:
    """Build, tests, benchmarks, table."""
    start = time.monotonic()
    left: Callable[[], float] = lambda: ALL - (time.monotonic() - start)  # noqa: E731
    parts = [log.part(build(python))]
    tests = sorted((ROOT / "tests" / "gpu").glob("test_*.py"))

    def test(path: Path) -> Part:
        limit = min(FILE, TESTS - (time.monotonic() - start))
        # A hang says where it hung before its time is up.
        hang = ("-o", f"faulthandler_timeout={max(limit - 10, 5):.0f}")
        name = str(path.relative_to(ROOT))
        return log.part(run(name, pytest(python, *hang, name), limit))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        parts += pool.map(test, tests)
    records = file.with_suffix(".jsonl")
    records.unlink(missing_ok=True)
    quick = ["--benchmark", "--quick", "--device", "cuda", "--records", str(records.resolve())]
    if all(part.ok for part in parts):
        quick.append("--no-gate")  # the tests that it would run first have just passed
    for path in benchmarks():
        name = str(path.relative_to(ROOT))
        limit = min(BENCH_FILE, left())
        if limit < 10:
            parts.append(Part(name, None, 0.0, "not started"))
            continue
        parts.append(log.part(run(name, pytest(python, *quick, name), limit)))
    log("\n" + table(records))
    log("\n" + "\n".join(map(str, parts)))
    bad = [part.name for part in parts if not part.ok]
    took = f"{time.monotonic() - start:.0f} s"
    log(f"\n{took}, all well" if not bad else f"\n{took}, not well: {', '.join(bad)}")
    return 1 if bad else 0


def benchmarks() -> list[Path]:
    """The files that `--device cuda` runs: what the GPU can do, operations, the whole encoder."""
    files = sorted((ROOT / "bench").glob("bench_gpu_*.py"))
    files.sort(key=lambda file: file.stem.removeprefix("bench_gpu_") in WHOLE)  # stable
    return [ROOT / "bench" / "bench_gemm.py", *files]


def build(python: str, limit: float = BUILD) -> Part:
    return run("build", [python, "-W", "ignore", "setup.py", "-q", "build_ext", "--inplace"], limit)


def table(records: Path) -> str:
    """The rows measured, as `pytest bench/ --benchmark` prints them."""
    sys.path.insert(0, str(ROOT))
    from bench import report

    if not records.exists():
        return "nothing was measured"
    rows: dict[str, list[dict[str, object]]] = {}
    for line in records.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        rows.setdefault(record["row"], []).append(record)
    lines = report.plain([cells for group in rows.values() for cells in report.cells(group)])
    reasons = [f"{r['row']}, {r['candidate']}: {r['status']}, {r['reason']}"
               for group in rows.values() for r in group if r.get("reason")]  # fmt: skip
    return "\n".join([lines, "", *reasons]).rstrip()


def sanitize(python: str, log: Log) -> int:
    """tests/gpu under compute-sanitizer. Only what the sanitizer finds counts."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(tool).exists():
        log("compute-sanitizer is not installed: nothing checked")
        return 0
    built = log.part(build(python))
    bad = [] if built.ok else [built.name]
    for check in ("memcheck", "racecheck"):
        for path in sorted((ROOT / "tests" / "gpu").glob("test_*.py")):
            name = f"{check} {path.stem}"
            command = [tool, "--tool", check, "--error-exitcode", "86", "--print-limit", "20",
                       "--target-processes", "all",
                       *pytest(python, "-k", "not graph", "-m", "not slow", str(path))]  # fmt: skip
            # Each tensor its own allocation, so that a read beyond its end is seen.
            part = run(name, command, SANITIZED_FILE, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
            if "Device not supported" in part.output:
                log(f"compute-sanitizer refuses this machine ({check}): Device not supported")
                break
            log.part(part)
            if part.code == 86:
                bad.append(name)
    log(f"compute-sanitizer: {', '.join(bad) or 'nothing found'}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
