"""`make gpu` where there is no GPU, and its parts: limits, the log, the table, the exit status."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_script", ROOT / "scripts" / "gpu.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_script", module)  # dataclasses look themselves up
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_and_2(tmp_path: Path) -> None:
    log = tmp_path / "gpu.log"
    done = make("gpu", f"PYTHON={sys.executable}", f"GPU_LOG={log}")
    assert done.returncode == 2 and done.stdout == ""
    first, *rest = done.stderr.splitlines()
    assert first == "make gpu needs a CUDA device: torch finds no CUDA device"
    assert all(re.match(r"make(\[\d+\])?: \*\*\*", line) for line in rest)  # [1] within a make
    assert not log.exists()


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONSAFEPATH": "1", "MAKEFLAGS": ""}
    return subprocess.run(
        ["make", "-s", *arguments], cwd=ROOT, env=env, capture_output=True, text=True
    )


def test_sanitizing_without_a_gpu(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    proving, sanitizing = (make("-n", target).stdout for target in ("gpu", "gpu-sanitize"))
    assert proving and sanitizing == proving.rstrip("\n") + " --sanitize\n"
    monkeypatch.setattr(gpu, "device", lambda python: ("", "torch finds no CUDA device"))
    log = tmp_path / "gpu.log"
    assert gpu.main(["--sanitize", "--log", str(log)]) == 2
    shown = capsys.readouterr()
    assert shown.err == "make gpu needs a CUDA device: torch finds no CUDA device\n"
    assert shown.out == "" and not log.exists()


def test_a_part_that_hangs_is_ended_with_its_children(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begun, alive = tmp_path / "begun", tmp_path / "alive"

    class Timer(threading.Timer):  # whose time counts from when the child is there
        def run(self) -> None:
            while not begun.exists():
                time.sleep(0.01)
            super().run()

    monkeypatch.setattr(threading, "Timer", Timer)
    # Its child has the same standard output, so one that lived on would be waited for.
    child = f"import time; time.sleep(20); open({str(alive)!r}, 'w')"
    code = (
        "import subprocess, sys, time; print('begun', flush=True); "
        f"subprocess.Popen([sys.executable, '-c', {child!r}]); "
        f"open({str(begun)!r}, 'w'); time.sleep(60)"
    )
    part = gpu.run("hangs", [sys.executable, "-c", code], 0.3)
    assert part.code is None and not part.ok and part.output == "begun\n"
    assert "time is up" in str(part)
    assert not alive.exists()


def test_parts_that_pass_and_fail(gpu: ModuleType) -> None:
    python = [sys.executable, "-c"]
    good = gpu.run("good", [*python, "import os; print(os.environ['PYTHONSAFEPATH'])"], 60)
    bad = gpu.run("bad", [*python, "import sys; print('why'); sys.exit(4)"], 60)
    assert good.ok and good.output == "1\n" and " ok " in str(good)
    assert not bad.ok and "exit 4" in str(bad) and str(bad).endswith("why")
    assert gpu.Part("pytest", 5, 0.1, "no tests ran").ok


def _record(**more: object) -> str:
    base = {"row": "r", "candidate": "m3fast", "status": "ok", "unit": "s", "p50": 2e-5}
    return json.dumps(base | more) + "\n"


def _prove(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, test: str) -> int:
    """All of it with tests and benchmarks that are one line of Python each."""
    lines = _record() + _record(candidate="Peer", p50=6e-5, ratio=3.0)
    lines += _record(candidate="Other", status="skipped", p50=None, reason="not installed")
    lines = lines.replace(', "p50": null', "")

    def pytest_(python: str, *arguments: str) -> list[str]:
        if "--records" not in arguments:
            return [python, "-c", test]
        file = arguments[arguments.index("--records") + 1]
        code = f"open({file!r}, 'a').write({lines!r})" if "sparse" in arguments[-1] else ""
        return [python, "-c", code]

    monkeypatch.setattr(gpu, "pytest", pytest_)
    monkeypatch.setattr(gpu, "build", lambda python: gpu.Part("build", 0, 1.0, ""))
    monkeypatch.setattr(gpu, "device", lambda python: ("A GPU, sm_90", ""))
    return gpu.main(["--log", str(tmp_path / "gpu.log")])


def test_table_comes_last_and_is_in_the_log(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert _prove(gpu, monkeypatch, tmp_path, "print('3 passed')") == 0
    shown = capsys.readouterr().out
    assert shown == (tmp_path / "gpu.log").read_text()
    assert shown.startswith("A GPU, sm_90\n")
    table = shown[shown.index("Workload") :]
    assert "r         20 µs   Peer   60 µs       3.00×" in table
    assert "r, Other: skipped, not installed" in table
    assert "tests/gpu/test_attention.py" in table and "bench/bench_gpu_sparse.py" in table
    assert table.rstrip().endswith("all well")


def test_benchmarks_come_in_an_order_that_a_time_limit_may_cut(gpu: ModuleType) -> None:
    files = gpu.benchmarks()
    suites = [file.stem.removeprefix("bench_").removeprefix("gpu_") for file in files]
    assert all(file.exists() for file in files) and set(gpu.WHOLE) <= set(suites)
    assert suites[0] == "gemm" and tuple(suites[-len(gpu.WHOLE) :]) == gpu.WHOLE
    assert {"attention", "layernorm", "maxsim", "packing", "sparse"} < set(suites)


def test_benchmarks_follow_failing_tests(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert _prove(gpu, monkeypatch, tmp_path, "import sys; sys.exit(1)") == 1
    shown = capsys.readouterr().out
    assert "60 µs" in shown and "not well: tests/gpu/test_" in shown.splitlines()[-1]


@pytest.mark.parametrize(
    ("output", "code", "status", "said"),
    [
        ("Error: Device not supported", 1, 0, "refuses this machine (memcheck)"),
        ("3 passed", 0, 0, "nothing found"),
        ("1 failed", 1, 0, "nothing found"),  # make gpu is for that
        ("Invalid __global__ read", 86, 1, "compute-sanitizer: memcheck test_"),
    ],
)
def test_sanitizer(
    output: str, code: int, status: int, said: str, gpu: ModuleType, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\necho '{output}'\nexit {code}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(gpu, "build", lambda python: gpu.Part("build", 0, 1.0, ""))
    monkeypatch.setattr(gpu, "device", lambda python: ("A GPU", ""))
    assert gpu.main(["--sanitize", "--log", str(tmp_path / "gpu.log")]) == status
    assert said in capsys.readouterr().out


def test_no_sanitizer_is_no_failure(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(gpu.shutil, "which", lambda name: str(tmp_path / "absent"))
    monkeypatch.setattr(gpu, "device", lambda python: ("A GPU", ""))
    assert gpu.main(["--sanitize", "--log", str(tmp_path / "gpu.log")]) == 0
    assert "not installed: nothing checked" in capsys.readouterr().out
