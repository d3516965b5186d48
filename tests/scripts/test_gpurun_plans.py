"""The plans of the commands for a GPU: their time, their files, what is rehearsed and travels."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from scripts.gpurun_inputs import FOUND, ROOT, nothing


def test_every_plan_fits_its_time(gpurun: SimpleNamespace, tmp_path: Path) -> None:
    limits = {"first": 210, "tests": 180, "bench": 210, "tune": 90, "sanitize": 90}
    assert set(gpurun.plans.PLANS) == set(limits)
    for name, limit in limits.items():
        plan = gpurun.plans.PLANS[name](gpurun.out.Out(tmp_path))
        assert plan.limit <= limit, name
        steps = [step for phase in plan.phases for step in phase.steps]
        assert len({step.name for step in steps}) == len(steps)
        for step in steps:
            words = step.arguments if hasattr(step, "arguments") else step.command
            files = [word for word in words if word.startswith(("tests/", "bench/"))]
            assert all((ROOT / file).exists() for file in files), step.name


def test_some_steps_only(
    gpurun: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    plan = gpurun.plans.first(gpurun.out.Out(tmp_path))
    assert plan.only([]) is plan
    few = plan.only(["build", "check T"])
    names = [step.name for phase in few.phases for step in phase.steps]
    assert names == ["build", "check Tma"] and "build, check T" in few.left_out[-1]
    monkeypatch.setattr(gpurun.run, "about", lambda environment: FOUND)
    monkeypatch.setattr(gpurun.cache, "unpack", str)
    assert gpurun.run.run("first", gpurun.out.Out(tmp_path), ["build", "chek"]) == 2
    assert "ONLY: expected part of a step's name, found 'chek'" in capsys.readouterr().err


def test_every_test_of_a_gpu_is_in_a_shard(gpurun: SimpleNamespace, tmp_path: Path) -> None:
    plan = gpurun.plans.tests(gpurun.out.Out(tmp_path))
    shards = [shard for phase in plan.phases for shard in phase.steps]
    parts: dict[str, list[tuple[int, int]]] = {}
    for shard in shards:
        parts.setdefault(shard.arguments[0], []).append((shard.part, shard.parts))
    there = {str(f.relative_to(ROOT)) for f in (ROOT / "tests" / "gpu").rglob("test_*.py")}
    assert parts.keys() == there
    for of_file in parts.values():
        assert sorted(of_file) == [(i, len(of_file)) for i in range(len(of_file))]
    assert [s.arguments[0] for s in plan.phases[-1].steps] == ["tests/gpu/test_train.py"]


def test_bench_needs_outcomes_of_this_tree(
    gpurun: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(gpurun.run, "about", lambda environment: FOUND)
    monkeypatch.setattr(gpurun.cache, "BROUGHT", tmp_path / "brought")
    monkeypatch.setattr(gpurun.cache, "ARCHIVE", tmp_path / "none")
    out = gpurun.out.Out(tmp_path / "out")
    out.line("tests.jsonl", tree="another", device=FOUND["device"])
    out.line("tests.jsonl", tree="feed", device=None)  # a rehearsal
    assert gpurun.run.run("bench", out) == 2
    assert "gpu-tests, which has not run for this card and tree" in capsys.readouterr().err
    for device in (None, FOUND["device"]):
        plan, found = gpurun.plans.Plan("none", 60, ()), {**FOUND, "device": device}
        gpurun.run.execute(plan, out, found, {}, say=nothing)
        later = gpurun.verdicts.known(gpurun.out.Out(tmp_path / "later"), FOUND)
        assert later == (device is not None)


def test_kernels_travel(
    gpurun: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {"BROUGHT": "made", "ARCHIVE": "made/t.tar.xz", "WHEELS": "made/wheels",
              "THERE": "there", "TRITON": "there/triton", "SITE": "there/site"}  # fmt: skip
    for name, value in places.items():
        monkeypatch.setattr(gpurun.cache, name, tmp_path / value)
    monkeypatch.setattr(gpurun.cache, "ROOT", tmp_path)
    assert "no compiled kernels" in gpurun.cache.unpack()
    (tmp_path / "there/triton/KEY").mkdir(parents=True)
    (tmp_path / "there/triton/KEY/a.cubin").write_text("code")
    assert gpurun.cache.pack().startswith("1 kernels in made/t.tar.xz")
    (tmp_path / "there/triton/KEY/a.cubin").unlink()
    (tmp_path / "there/triton/KEY").rmdir()
    (tmp_path / "there/triton").rmdir()
    assert gpurun.cache.unpack() == "1 compiled kernels brought along"
    assert (tmp_path / "there/triton/KEY/a.cubin").read_text() == "code"


def test_rehearsed_steps_need_no_gpu(gpurun: SimpleNamespace, tmp_path: Path) -> None:
    for name, make_plan in gpurun.plans.PLANS.items():
        for phase in make_plan(gpurun.out.Out(tmp_path)).phases:
            for step in map(gpurun.rehearse.rehearsed, phase.steps):
                words = [*getattr(step, "command", ()), *getattr(step, "wrap", ())]
                assert "cuda" not in words and "--benchmark" not in words, name
                assert not any("sanitizer" in word for word in words)
                assert step.name == "build" or step.environment["OMP_NUM_THREADS"] == "1"


def test_what_was_not_rehearsed(gpurun: SimpleNamespace, tmp_path: Path) -> None:
    for name, outcome in (("first", "skipped"), ("tests", "passed")):
        out = gpurun.out.Out(tmp_path / name)
        out.line("tests.jsonl", tree="feed", run="now")
        out.line("tests.jsonl", test="f.py::seen[a]", outcome=outcome)
        out.line("tests.jsonl", test="f.py::never[b]", outcome="skipped")
    said = gpurun.rehearse.not_rehearsed(gpurun.out.Out(tmp_path))
    assert "f.py::never" in said and "f.py::seen" not in said
