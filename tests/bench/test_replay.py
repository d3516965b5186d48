"""pytest-benchmark beside `--benchmark`: what reaches it, and what its options do."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import bench.conftest  # noqa: F401 - pytester forgets what is first imported in its runs
import pytest
import torch

pytest.importorskip("pytest_benchmark")
pytest_plugins = "pytester"

ROOT = Path(__file__).parents[2]
CONFTEST = f"""
import runpy
runpy.run_path({str(ROOT / "scripts" / "benchpackage.py")!r})
from bench.conftest import *
"""
# Two rows: one of three candidates, of which two have times, and one that is no time.
ROWS = """
import time
from bench.core.harness import Row
from bench.core.measure import Absent, Sampled

def absent():
    raise Absent("not here")

def test_sleep(bench):
    def sleeps(seconds):
        return lambda: lambda _: time.sleep(seconds)
    makers = {"m3fast": sleeps(0.001), "Peer": sleeps(0.002), "Other": absent}
    bench.compare(Row("sleep, a while", "s", tokens=7, unit="tokens/s"), makers, [0], rounds=50)

def test_memory(bench):
    bench.add(Row("memory", "s", unit="MiB"), {"m3fast": Sampled([3.0])}, {}, {})
"""


class Run:
    """`pytest bench_x.py` with pytest-benchmark, in this process unless told otherwise."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.folder, self.pytest = pytester.path, pytester.runpytest_inprocess
        pytester.makeconftest(CONFTEST)
        (pytester.path / "bench_x.py").write_text(ROWS)

    def __call__(self, *arguments: str, plugin: bool = True) -> pytest.RunResult:
        plugins = ("-p", "pytest_benchmark.plugin") if plugin else ()
        return self.pytest("bench_x.py", "--device", "cpu", *plugins, *arguments)

    def timed(self, *arguments: str, plugin: bool = True) -> pytest.RunResult:
        return self(
            "--benchmark", "--quick", "--records", "records.jsonl", *arguments, plugin=plugin
        )

    def records(self) -> dict[str, dict[str, Any]]:
        lines = (self.folder / "records.jsonl").read_text().splitlines()
        return {r["candidate"]: r for r in map(json.loads, lines) if r["row"] != "memory"}


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("RAYON_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # it would be disabled there
    return Run(pytester)


def test_samples_are_replayed(run: Run) -> None:
    run.timed("--benchmark-json", "f.json").assert_outcomes(passed=2)
    entries = json.loads((run.folder / "f.json").read_text())["benchmarks"]
    records = run.records()
    assert [e["params"]["candidate"] for e in entries] == ["m3fast", "Peer"]
    for entry in entries:
        record = records[entry["params"]["candidate"]]
        stats = entry["stats"]
        assert stats["rounds"] == len(stats["data"]) == record["samples"] == 3
        assert float(f"{stats['median']:.5g}") == record["p50"]
        assert entry["group"] == entry["params"]["row"] == "sleep, a while"
        assert entry["name"] == f"sleep, a while: {record['candidate']}"
        assert entry["fullname"] == f"bench_x.py::test_sleep[{entry['name']}]"
        extra = entry["extra_info"]
        assert extra["unit"] == "tokens/s" and extra["tokens"] == 7
        assert extra["commit"] == record["commit"] and extra.get("ratio") == record.get("ratio")
        assert extra["left_out"] == {"Other": "skipped: not here"}


def test_saves_are_compared(run: Run) -> None:
    run.timed("--benchmark-autosave", "--benchmark-storage", "kept").assert_outcomes(passed=2)
    saved = list((run.folder / "kept").rglob("*.json"))
    assert len(saved) == 1 and "data" not in json.loads(saved[0].read_text())["benchmarks"][0]
    shown = run.timed(
        "--benchmark-compare", "--benchmark-storage", "kept", "--benchmark-save", "second",
        "--benchmark-group-by", "param:candidate",
    ).stdout  # fmt: skip
    shown.fnmatch_lines_random(
        ["*benchmark 'candidate=m3fast': 2 tests*", "*m3fast (0001_*", "*m3fast (NOW)*"]
    )
    assert len(list((run.folder / "kept").rglob("*_second.json"))) == 1


@pytest.mark.slow
def test_a_histogram_per_row(run: Run, pytester: pytest.Pytester) -> None:
    if importlib.util.find_spec("pygal") is None:
        pytest.skip("needs pygal")
    run.pytest = pytester.runpytest_subprocess  # pygal's imports change importlib.metadata
    run.timed("--benchmark-histogram", "plots/x").assert_outcomes(passed=2)
    assert [f.name for f in (run.folder / "plots").iterdir()] == ["x-sleep,_a_while.svg"]


@pytest.mark.parametrize("option", ["--benchmark-json=f.json", "--benchmark-autosave"])
def test_times_need_benchmark(run: Run, option: str) -> None:
    found = run(option)
    assert found.ret == pytest.ExitCode.USAGE_ERROR
    name = option.partition("=")[0]
    found.stderr.fnmatch_lines([f"ERROR: {name}: rows are timed with --benchmark only"])


def test_smoke_has_no_times(run: Run) -> None:
    found = run()
    found.assert_outcomes(passed=2)
    found.stdout.no_fnmatch_line("*Rounds*")


def test_only_skip_and_disable(run: Run) -> None:
    run("--benchmark-only").assert_outcomes(passed=2)
    run("--benchmark-skip").assert_outcomes(skipped=2)
    found = run.timed("--benchmark-disable", "--benchmark-json", "f.json")
    found.assert_outcomes(passed=2)
    assert not (run.folder / "f.json").exists()
    assert run.records()["m3fast"]["samples"] == 1, "once, and nothing timed"


def test_without_the_plugin(run: Run) -> None:
    found = run.timed(plugin=False)
    found.assert_outcomes(passed=2)
    found.stdout.no_fnmatch_line("*Rounds*")
    assert run.records()["Peer"]["samples"] == 3
