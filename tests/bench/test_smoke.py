"""`pytest bench/` in processes of its own: every row once, records, the table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from bench.core.paths import RESULTS
from bench.report import table
from benchkept import pytest_of

ROOT = Path(__file__).parents[2]


def _pytest(*arguments: str, **environment: str) -> str:
    done = pytest_of(*arguments, **environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    return done.stdout


@pytest.mark.slow
def test_smoke_round_of_every_row() -> None:
    before = {f: f.read_bytes() for f in RESULTS.rglob("*.jsonl")}
    # test_serve.py runs that file, and looks at its records too.
    assert "passed" in _pytest("bench/", "--ignore", "bench/serve/bench_serve.py")
    assert {f: f.read_bytes() for f in RESULTS.rglob("*.jsonl")} == before


@pytest.mark.slow
def test_smoke_round_of_gpu_rows_with_interpreted_kernels() -> None:
    shown = _pytest("bench/", "-vv", TRITON_INTERPRET="1")
    assert "a CPU's row" in shown
    for file in (ROOT / "bench").rglob("bench_gpu_*.py"):
        assert re.search(rf"{file.name}::.* PASSED", shown), file.name


@pytest.mark.slow
def test_records_go_where_one_says(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    _pytest("bench/cpu/bench_packing.py", "--benchmark", "--quick", "--no-gate", "--device", "cpu",
            "--records", str(file))  # fmt: skip
    found = table.read(file)
    assert {(r["suite"], r["scale"]) for r in found} == {("packing", "quick")}
    assert any("p50" in r for r in found)


@pytest.mark.slow
def test_benchmark_prints_the_table() -> None:
    before = {f: f.read_bytes() for f in RESULTS.rglob("*.jsonl")}
    shown = _pytest("bench/cpu/bench_sparse.py", "--benchmark", "--quick")
    assert "Workload" in shown and "sparse dicts, 256 x 512 tokens" in shown
    assert {f: f.read_bytes() for f in RESULTS.rglob("*.jsonl")} == before, "--quick is no record"
