"""What a run does around its rows: suites, the gates, progress, the table at its end."""

from __future__ import annotations

import re
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from bench import conftest
from bench.core import harness, measure, progress, proof, roof, workloads
from bench.report import table
from benchkept import PLAIN, Kept, pytest_of
from checkpoints import TINY_CONFIG

ROOT = Path(__file__).parents[2]
ROW = harness.Row("row", shape="s")


def same(_: Any) -> int:
    return 1


def test_red_tests_void_a_suite(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    red, green = tmp_path / "test_red.py", tmp_path / "test_green.py"
    red.write_text("def test_it():\n    assert False\n")
    green.write_text("def test_it():\n    pass\n")
    tests = {"sparse": (str(red),), "maxsim": (str(green),), "packing": (str(green), "-k", "gone")}
    monkeypatch.setitem(proof.TESTS, "cpu", tests)
    for name, value in PLAIN.items():
        monkeypatch.setenv(name, value)
    its = proof.Proof("cpu")
    assert its.red("maxsim") == "" and its.red("encode") == ""
    assert its.waits("sparse")
    assert its.red("sparse") == f"{red} fail" and not its.waits("sparse")
    red.unlink()
    assert its.red("sparse") == f"{red} fail", "once per session"
    assert "test_green.py do not run" in its.red("packing"), "no tests prove nothing"
    assert proof.Proof("cpu", open=True).red("sparse") == ""


def test_a_void_suite_is_not_timed_and_on_record() -> None:
    kept = Kept()
    kept.bench.begin("sparse", "bench_sparse.py::test_x", "tests/kernels/test_sparse.py fail")

    def never() -> measure.Candidate:
        raise AssertionError("nothing is made")

    for measured in (
        lambda: kept.bench.compare(ROW, {"m3fast": never}, [0], rounds=3),
        lambda: kept.bench.add(ROW, {"m3fast": measure.Sampled([1.0])}, {}, {}),
    ):
        with pytest.raises(pytest.fail.Exception, match=r"void: tests/kernels/test_sparse\.py"):
            measured()
    for record in kept.records:
        assert record["status"] == "void" and "p50" not in record
        assert (record["suite"], record["test"]) == ("sparse", "bench_sparse.py::test_x")
    assert table.cells(kept.records[:1])[0][:2] == ["row", "void"]
    assert table.notes(kept.records[:1]) == "void, tests/kernels/test_sparse.py fail"


def test_suites_of_the_gate_exist() -> None:
    files = [*(ROOT / "bench").rglob("bench_*.py")]
    suites = {progress.suite_of(file) for file in files}
    for tests in proof.TESTS.values():
        assert set(tests) <= suites
        for arguments in tests.values():
            assert all((ROOT / name).exists() for name in arguments if name.endswith(".py"))


@pytest.mark.parametrize(("reached", "status"), [(0.89, "void"), (0.91, "ok")])
def test_a_weak_baseline_is_void(reached: float, status: str) -> None:
    kept = Kept()
    kept.bench.compare(
        ROW,
        {"m3fast": lambda: same, "strong": lambda: same, "other": lambda: same},
        [0],
        rounds=3,
        void={"strong": lambda: reached, "absent": lambda: 0.0},
    )
    ours, strong, other = kept.records
    assert ours["status"] == other["status"] == "ok" and strong["status"] == status
    assert ("ratio" in strong) == ("p50" in strong) == (status == "ok")
    if status == "void":
        assert strong["reason"] == (
            "its products reach 89 % of the gemm suite's rate, a strong baseline 90 %"
        )
        assert table.cells(kept.records)[0][2:5] == ["strong", "void", ""]


def test_share_of_the_limit() -> None:
    kept = Kept()
    kept.bench.roof = Roof()
    seconds = {"m3fast": [2.0] * 3, "peer": [8.0] * 3}

    def share(**more: Any) -> list[float | None]:
        kept.records.clear()
        found = {name: measure.Sampled(s) for name, s in seconds.items()}
        kept.bench.add(harness.Row("row", shape="s", **more), found, {}, {})
        return [record.get("share") for record in kept.records]

    assert share(work=1e9) == [0.5, 0.125]
    assert kept.records[0]["roof"] == {"flops": 1e9}
    # The tighter of both limits.
    assert share(work=1e9, moved=15e7) == [0.75, 0.1875]
    assert share(work=1e9, moved=1e6) == [0.5, 0.125]
    assert share() == share(work=1e9, dtype="int4") == [None, None]


class Roof:
    bandwidth = 1e8

    def flops(self, dtype: str) -> float | None:
        return 1e9 if dtype == "float32" else None


def test_many_samples_are_kept_in_order() -> None:
    kept = Kept()
    seconds = [0.123456 + i % 7 for i in range(200)]
    for count in (199, 200):
        kept.bench.add(ROW, {"m3fast": measure.Sampled(seconds[:count])}, {}, {})
    few, many = kept.records
    assert "sorted" not in few and len(many["sorted"]) == 200
    assert many["sorted"] == sorted(many["sorted"]) and many["sorted"][0] == 0.1235


def test_roof_is_the_best_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    its = roof.Roof(torch.device("cpu"), toy=True)
    seconds = iter([4.0, 1.0, 2.0, 0.5] + [8.0] * 20)
    monkeypatch.setattr(its, "_passes", lambda: [(1.0, "a"), (2.0, "b")])
    monkeypatch.setattr(its, "_seconds", lambda run, limit: next(seconds))
    assert its.bandwidth == 2.0  # 2 / 1, not 1 / 4
    assert its.bandwidth == 2.0  # slower now
    assert its.bandwidth == 4.0
    assert its.flops("float8_e4m3fn") is None


def test_products_are_products() -> None:
    x, weight = torch.randn(5, 64), torch.randn(32, 64)
    with torch.inference_mode():
        for run in roof.products(x, weight).values():
            torch.testing.assert_close(run(x), x @ weight.t())
    assert {n * k for n, k in roof.shapes(64).values()} == {3 * 64**2, 64**2, 4 * 64**2}


def test_a_model_of_ones_own(tmp_path: Path) -> None:
    kept = Kept()
    assert kept.bench.encoder_shape(24) == workloads.Shape(24)
    kept.bench.model = workloads.TINY
    shape = kept.bench.encoder_shape(24)
    assert shape == harness.Bench.shape_of(workloads.TINY) != workloads.Shape(24)
    assert shape.ffn == TINY_CONFIG["intermediate_size"]
    assert kept.bench.checkpoint(shape) == workloads.TINY
    with pytest.raises(pytest.skip.Exception):
        kept.bench.full_only(True)
    for model in (True, False):
        row = harness.Row("row", shape="s", model=model)
        kept.bench.add(row, {"m3fast": measure.Sampled([1.0])}, {}, {})
    assert [r["row"] for r in kept.records] == ["row, m3fast-tiny", "row"]
    assert "model" in kept.records[0] and "model" not in kept.records[1]


def test_progress_counts_and_estimates() -> None:
    now, said = [0.0], []
    its = progress.Progress(said.append, lambda: now[0])
    its.expect(["sparse", "sparse", "sparse", "encode", "encode"])

    def test(name: str, seconds: float, skipped: str = "") -> None:
        its.pytest_runtest_logstart(f"bench/bench_{name}")
        its.begin()
        now[0] += seconds
        report = pytest.TestReport(
            "", ("", 0, ""), {}, "skipped" if skipped else "passed",
            ("", 0, f"Skipped: {skipped}") if skipped else None, "call",
        )  # fmt: skip
        its.pytest_runtest_logreport(report)

    test("sparse.py::test_a", 10.0)
    test("sparse.py::test_b", 0.0, "awaits a CPU")
    test("gpu_sparse.py::test_c", 20.0)
    test("encode.py::test_d", 100.0)
    test("encode.py::test_e", 100.0)
    assert said == [
        "sparse 1/3, 0:00 so far: test_a",
        "sparse 2/3, 0:10 so far, about 0:40 left: test_b",
        "sparse, test_b: awaits a CPU",
        "sparse 3/3, 0:10 so far, about 0:30 left: test_c",
        "encode 1/2, 0:30 so far, about 0:30 left: test_d",
        "encode 2/2, 2:10 so far, about 1:40 left: test_e",
    ]


def test_lines_about_rounds_are_few() -> None:
    now, said = [0.0], []
    say = progress.paced(said.append, lambda: now[0])
    for i in range(20):
        now[0] = float(i)
        say(str(i))
    assert said == ["5", "10", "15"]


@pytest.mark.slow
def test_suites_by_name() -> None:
    asked = ("--suite", "gemm, packing,full")
    found = pytest_of("--collect-only", "bench/", *asked).stdout
    files = {line.split("::")[0] for line in found.splitlines() if "::" in line}
    assert files == {
        f"bench/{name}.py"
        for name in ("cpu/bench_gemm", "cpu/bench_packing", "gpu/bench_gpu_packing")
    }  # fmt: skip


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--suite", "gemm,speed", "--suite speed: unknown; there are default, full, attention,"),
        ("--model", "no/such/folder", "--model no/such/folder: no folder with a config.json"),
    ],
)
def test_unknown_names_are_usage_errors(option: str, value: str, said: str) -> None:
    given = {"--suite": "default", "--model": None, option: value}
    config: Any = types.SimpleNamespace(getoption=given.get, addinivalue_line=lambda *_: None)
    with pytest.raises(pytest.UsageError, match=re.escape(said)):
        conftest.pytest_configure(config)
