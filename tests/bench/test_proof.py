"""What came of tests/gpu decides whose times count, and what a first run on a GPU measures."""

from __future__ import annotations

import importlib
import json
import types
from pathlib import Path
from typing import Any

import pytest
from bench import conftest
from bench.core import harness, measure, proof, record
from bench.gpu import order
from benchkept import Kept

SPARSE, RUNNER = "tests/gpu/test_sparse.py", proof.RUNNER
HERE, DONE = {"tree": "here"}, {"file": SPARSE, "complete": True}


def test(name: str, outcome: str = "passed", file: str = SPARSE) -> dict[str, Any]:
    return {"test": f"{file}::{name}", "outcome": outcome, "seconds": 1.0}


test.__test__ = False  # pyright: ignore[reportFunctionMemberAccess]


@pytest.fixture
def judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(record, "tree", lambda: "here")
    monkeypatch.setattr(proof, "run", lambda arguments: pytest.fail("nothing is run"))

    def red(suite: str, *lines: Any, row: str = "") -> str:
        file = tmp_path / "verdicts.jsonl"
        text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        file.write_text("\n".join(text) + "\n")
        its = proof.Proof("cuda", verdicts=file)
        assert not its.waits(suite)
        return its.red(suite, row)

    return red


def test_a_red_test_voids_the_rows_of_its_own_operation(judged: Any) -> None:
    norm, gelu = (f"tests/gpu/test_{name}.py" for name in ("layernorm", "gelu"))
    lines = [HERE, test("test_a", file=norm), test("test_b", "failed", gelu),
             *({"file": file, "complete": True} for file in (norm, gelu))]  # fmt: skip
    assert judged("layernorm", *lines, row="test_add_layernorm") == ""
    assert judged("layernorm", *lines, row="test_embed_layernorm") == ""
    assert judged("layernorm", *lines, row="test_bias_gelu") == f"{gelu}: test_b failed"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_row_of_two_operations_has_a_file_of_tests(device: str) -> None:
    for stem in ("cpu.bench_layernorm", "gpu.bench_gpu_layernorm"):
        module = importlib.import_module(f"bench.{stem}")
        rows = {name for name in vars(module) if name.startswith("test_")}
        assert rows == proof.OWN.keys()
    files = proof.TESTS[device]["layernorm"]
    for word in proof.OWN.values():
        assert len([file for file in files if word in file]) == 1


def test_what_is_red(judged: Any) -> None:
    good = test("test_a[x]")
    assert judged("sparse", HERE, good, test("test_b", "skipped"), DONE) == ""
    for outcome in ("failed", "hung", "crashed"):
        said = judged("sparse", HERE, good, test("TestX::test_b[y]", outcome), DONE)
        assert said == f"{SPARSE}: TestX::test_b[y] {outcome}"
    two = (test("test_b", "failed"), test("test_c", "hung"))
    assert judged("sparse", HERE, *two) == f"{SPARSE}: test_b failed and 1 more"
    assert judged("sparse", HERE, good) == f"{SPARSE} did not finish"
    nothing = f"{SPARSE}: nothing has run of these sources"
    assert judged("sparse", HERE, test("test_a", "skipped"), DONE) == nothing
    assert judged("sparse") == nothing
    assert judged("maxsim", HERE, good, DONE).startswith("tests/gpu/test_maxsim.py: nothing")
    assert judged("gemm") == "", "no tests are asked for"


def test_one_file_of_several_may_be_skipped(judged: Any) -> None:
    first, *others = proof.TESTS["cuda"]["maxsim"]
    done = [{"file": file, "complete": True} for file in (first, *others)]
    skipped = [test("test_b", "skipped", file) for file in others]
    assert judged("maxsim", HERE, test("test_a", file=first), *skipped, *done) == ""
    assert judged("maxsim", HERE, test("test_a", file=first), *done).startswith(f"{others[0]}: no")
    said = judged("maxsim", HERE, test("test_a", "skipped", first), *skipped, *done)
    assert said.count("nothing has run") == len(done)


def test_other_sources_prove_nothing(judged: Any) -> None:
    there, good, bad = {"tree": "there"}, test("test_a"), test("test_a", "failed")
    assert "nothing has run" in judged("sparse", there, good, DONE)
    assert judged("sparse", there, bad, HERE, good, DONE) == ""
    assert judged("sparse", HERE, good, DONE, there, bad) == ""


def test_the_last_outcome_counts(judged: Any) -> None:
    good, bad = test("test_a"), test("test_a", "failed")
    assert judged("sparse", HERE, bad, DONE, HERE, good) == ""
    assert judged("sparse", HERE, good, DONE, HERE, bad)
    # A line that was being written when its process was killed.
    assert judged("sparse", HERE, good, '{"test": "tests/gpu/te', DONE) == ""


def test_no_file_is_red(tmp_path: Path) -> None:
    assert "nothing" in proof.Proof("cuda", verdicts=tmp_path / "none").red("sparse")


def test_one_red_test_voids_no_other_rows(judged: Any) -> None:
    done = {"file": RUNNER, "complete": True}
    linear = "tests/gpu/test_linear.py"
    others = (test("test_a", file=linear), {"file": linear, "complete": True})
    for name in proof.ASIDE[RUNNER]:
        good, bad = test("test_all_outputs", file=RUNNER), test(f"{name}[a]", "failed", RUNNER)
        lines = (HERE, good, bad, done, *others)
        for suite in ("encode", "latency", "scaling"):
            assert judged(suite, *lines) == ""
    assert judged("latency", HERE, test("test_all_outputs", "failed", RUNNER), done)
    assert judged("attention", HERE, test("test_all_outputs", "failed", RUNNER), done).startswith(
        "tests/gpu/test_attention.py: nothing"
    )
    gated = {file for files in proof.TESTS["cuda"].values() for file in files}
    assert not any("train" in file or "tune" in file for file in gated)


def test_tests_set_aside_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    for file, names in proof.ASIDE.items():
        assert proof.deselected(file) == [f"--deselect={file}::{name}" for name in names]
    assert proof.deselected(SPARSE) == []
    monkeypatch.setitem(proof.ASIDE, SPARSE, ("test_gone",))
    with pytest.raises(ValueError, match=r"test_sparse\.py has no test_gone"):
        proof.deselected(SPARSE)


@pytest.fixture
def known_mark(pytestconfig: pytest.Config) -> None:
    """As `pytest bench/` has it."""
    pytestconfig.addinivalue_line("markers", "first: a row of --first")


@pytest.mark.usefixtures("known_mark")
def test_first_chooses_the_marked_rows() -> None:
    its = Kept("first").bench
    mark = pytest.mark.first

    def item(file: str, marked: bool) -> Any:
        return types.SimpleNamespace(
            path=Path(file), get_closest_marker=lambda name: mark if marked else None,
            add_marker=lambda mark: None, module=types.ModuleType("m"),
        )  # fmt: skip

    items = [item(f"bench_gpu_{suite}.py", marked)
             for suite in ("sparse", "maxsim") for marked in (True, False)]  # fmt: skip
    left: list[Any] = []
    given = {"--suite": "default", "--first": True}
    config: Any = types.SimpleNamespace(
        stash={conftest.BENCH: its}, getoption=given.get,
        hook=types.SimpleNamespace(pytest_deselected=lambda items: left.extend(items)),
    )  # fmt: skip
    every = [*items]
    conftest.pytest_collection_modifyitems(config, items)
    assert items == every[::2] and left == every[1::2]
    given["--suite"] = "maxsim"
    conftest.pytest_collection_modifyitems(config, items := [*every])
    assert items == [every[2]]


@pytest.mark.usefixtures("known_mark")
def test_suites_for_a_gpu() -> None:
    """Each has its file; each of a first run has rows that are marked."""
    files = {file.name for file in (record.ROOT / "bench").rglob("bench_gpu_*.py")}
    names = [suite for suite, _ in order.QUICK]
    assert {Path(order.file_of(name)).name for name in names} == files | {"bench_gemm.py"}
    assert names[:3] == ["encode", "latency", "attention"]
    assert sum(seconds for _, seconds in order.QUICK) <= 210
    for suite, _ in order.FIRST:
        module = importlib.import_module(f"bench.gpu.bench_gpu_{suite}")
        marks = [m for row in vars(module).values() for m in getattr(row, "pytestmark", ())]
        marked = [m for m in marks if m.name == "first" or "name='first'" in str(m.args)]
        assert marked, suite


def test_a_first_run_leaves_out_what_takes_long() -> None:
    def never() -> measure.Candidate:
        raise AssertionError("it is not made")

    makers = {"m3fast": lambda: lambda _: 1}
    for scale, but in (("first", ()), ("quick", ("quick",))):
        kept = Kept(scale)
        its = kept.bench
        row = harness.Row("row", shape="s")
        its.compare(row, makers | its.slow({"peer": never}, *but), [0], rounds=3)
        assert kept.records[1]["reason"] == f"takes long to make: not in a {scale} run"
    assert Kept("quick").bench.slow({"peer": never}) == {"peer": never}


@pytest.mark.parametrize(("scale", "samples"), [("smoke", 1), ("quick", 40), ("default", 40)])
def test_short_rows_take_all_their_rounds(scale: str, samples: int) -> None:
    kept = Kept(scale)
    row = harness.Row("row", shape="s")
    kept.bench.compare(row, {"m3fast": lambda: lambda _: 1}, [0], rounds=40, short=True)
    assert kept.records[0]["samples"] == samples
