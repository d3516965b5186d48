"""The runner of the commands for a GPU: limits, what is left of what goes wrong, the table."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parents[2]
FOUND = {
    "device": "NVIDIA H100 80GB HBM3, 132 SMs, sm_90", "clocks": {}, "commit": "0123456789abcdef",
    "dirty": False, "tree": "feed", "versions": {"torch": "2.11.0"}, "python": "3.12.3",
}  # fmt: skip


@pytest.fixture
def gpurun(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from gpurun import cache, out, plans, planted, rehearse, run, shards, steps, table

    return SimpleNamespace(cache=cache, out=out, planted=planted, plans=plans, run=run,
                           rehearse=rehearse, shards=shards, steps=steps, table=table)  # fmt: skip


def nothing(line: str) -> None:
    del line


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONSAFEPATH": "1", "MAKEFLAGS": ""}
    return subprocess.run(
        ["make", "-s", *arguments], cwd=ROOT, env=env, capture_output=True, text=True
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_and_2(tmp_path: Path) -> None:
    done = make("gpu-first", f"PYTHON={sys.executable}", f"GPU_OUT={tmp_path / 'out'}")
    assert done.returncode == 2 and done.stdout == ""
    first, *rest = done.stderr.splitlines()
    assert first == "make gpu-first needs a CUDA device: torch finds no CUDA device"
    assert all(re.match(r"make(\[\d+\])?: \*\*\*", line) for line in rest)  # [1] within a make
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.slow
def test_what_goes_wrong_leaves_what_it_should(gpurun: SimpleNamespace, tmp_path: Path) -> None:
    out = gpurun.out.Out(tmp_path / "out")
    plan = gpurun.planted.plan(tmp_path, 2.0)
    environment = gpurun.planted.environment(tmp_path)
    said: list[str] = []
    assert gpurun.run.execute(plan, out, FOUND, environment, say=said.append) == 1
    assert gpurun.planted.missing(out, tmp_path) == []
    # And what is missing is seen.
    out.path("steps.jsonl").write_text("")
    (tmp_path / "out" / "core.1").write_text("")
    missing = gpurun.planted.missing(out, tmp_path)
    assert "hangs: None, not time is up" in missing and "core.1 is no result" in missing
    header = said[-1].strip().splitlines()[0]
    assert header.startswith("planted: NVIDIA H100 80GB HBM3, 132 SMs, sm_90, torch 2.11.0")
    assert "commit 0123456789ab, tree feed" in header


def test_a_killed_runner_takes_its_steps_along(gpurun: SimpleNamespace, tmp_path: Path) -> None:
    assert gpurun.planted.killed(tmp_path) == []


def test_time_that_runs_out(gpurun: SimpleNamespace, tmp_path: Path) -> None:
    out = gpurun.out.Out(tmp_path)
    with gpurun.steps.Runner(out, "short", 4.0, {}, say=nothing) as runner:
        late = runner.run(gpurun.steps.Step("late", python("import time; time.sleep(600)"), 600))
        never = runner.run(gpurun.steps.Step("never", python("print('too late')"), 30))
    assert (late.state, never.state) == ("time is up", "not started")
    assert 1 <= late.seconds < 60 and late.last == 'File "<string>", line 1 in <module>'
    assert [line["state"] for line in out.lines("steps.jsonl")] == ["time is up", "not started"]


def test_time_is_left_to_the_next_phase(gpurun: SimpleNamespace, tmp_path: Path) -> None:
    with gpurun.steps.Runner(gpurun.out.Out(tmp_path), "spare", 60, {}, say=nothing) as runner:
        runner.spare = 59.0
        waits = runner.run(gpurun.steps.Step("waits", python("input()"), 30))
        runner.spare = 0.0
        runs = runner.run(gpurun.steps.Step("runs", python("print('time enough')"), 30))
    assert waits.state == "not started" and runs.ok and runs.last == "time enough"


def test_stopping_keeps_what_is_done(gpurun: SimpleNamespace, tmp_path: Path) -> None:
    """As by Ctrl-C or a limit around it: the steps end, the table is written."""
    out = gpurun.out.Out(tmp_path)
    Step = gpurun.steps.Step
    steps = (Step("done", python("print('kept')"), 30), Step("cut", python("input()"), 30))

    def change(step: object) -> object:
        if step is steps[1]:
            raise KeyboardInterrupt
        return step

    plan = gpurun.plans.Plan("stopped", 60, (gpurun.plans.Phase(steps),))
    with pytest.raises(KeyboardInterrupt):
        gpurun.run.execute(plan, out, FOUND, {}, change, nothing)
    assert "kept" in out.path("table.txt").read_text()


def test_files_are_bounded(gpurun: SimpleNamespace, tmp_path: Path, monkeypatch) -> None:
    out = gpurun.out.Out(tmp_path)
    monkeypatch.setattr(gpurun.out, "MOST_BYTES", 1000)
    for i in range(100):
        out.line("steps.jsonl", number=i)
    assert out.path("steps.jsonl").stat().st_size <= 1000
    assert len(list(out.lines("steps.jsonl"))) > 50
    monkeypatch.undo()
    out.failure("long", "a" * 150_000 + "b" * 150_000)
    text = out.path("failures.txt").read_text()
    assert len(text) < 201_000 and "100000 characters left out" in text and text.endswith("b\n")


def test_a_line_cut_off_is_left_out(gpurun: SimpleNamespace, tmp_path: Path) -> None:
    out = gpurun.out.Out(tmp_path)
    out.line("steps.jsonl", step="a")
    out.text("steps.jsonl", '{"step": "b')
    assert [line["step"] for line in out.lines("steps.jsonl")] == ["a"]


def test_table_is_short_and_of_this_run(gpurun: SimpleNamespace, tmp_path: Path) -> None:
    out = gpurun.out.Out(tmp_path)
    base = {"row": "old", "candidate": "m3fast", "status": "ok", "unit": "s", "p50": 2e-5,
            "device": FOUND["device"], "run": "2026-01-01T00:00:00+00:00"}  # fmt: skip
    new = {**base, "row": "new", "run": "2026-01-02T00:00:00+00:00"}
    other = {**new, "candidate": "Other", "status": "skipped", "reason": "absent"}
    del other["p50"]
    for record in (base, new, {**new, "candidate": "Peer", "p50": 6e-5, "ratio": 3.0}, other):
        out.line("records.jsonl", **record)
    out.line("tests.jsonl", tree="feed", run="2026-01-01T00:00:00+00:00")
    out.line("tests.jsonl", test="a::old", outcome="failed", why="then")
    out.line("tests.jsonl", tree="feed", run="2026-01-02T00:00:00+00:00")
    out.line("tests.jsonl", test="a::new", outcome="hung", why="now")
    Result = gpurun.steps.Result
    results = [Result("good", 0, 1.0, "fine"), Result("bad", 1, 2.0, "why\n" * 9)]
    results += [Result(f"step {i}", 1, 2.0, "x" * 500) for i in range(300)]
    text = gpurun.table.render(out, ["header"], results, ["the rest"], new["run"])
    assert len(text) <= 12_000
    assert text.startswith("header\n") and "lines left out: see log.txt" in text
    assert "new: 20 µs; Peer 60 µs 3.00×; Other skipped (absent)" in text
    assert "old: " not in text
    short = gpurun.table.render(out, ["header"], results[:2], ["the rest"], new["run"])
    assert "a::new: hung: now" in short and "a::old" not in short
    assert "left out: the rest" in short and "3 s of steps, not well: bad" in short
    well = gpurun.table.render(out, [], results[:1], [], new["run"])
    assert well.endswith("1 s of steps, all well\n") and "a::new" not in well


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
    assert "ONLY: part of a step's name was expected, got 'chek'" in capsys.readouterr().err


def test_every_test_of_a_gpu_is_in_a_shard(gpurun: SimpleNamespace, tmp_path: Path) -> None:
    plan = gpurun.plans.tests(gpurun.out.Out(tmp_path))
    shards = [shard for phase in plan.phases for shard in phase.steps]
    parts: dict[str, list[tuple[int, int]]] = {}
    for shard in shards:
        parts.setdefault(shard.arguments[0], []).append((shard.part, shard.parts))
    there = {str(f.relative_to(ROOT)) for f in (ROOT / "tests" / "gpu").glob("test_*.py")}
    assert parts.keys() == there
    for of_file in parts.values():
        assert sorted(of_file) == [(i, len(of_file)) for i in range(len(of_file))]
    assert [s.arguments[0] for s in plan.phases[-1].steps] == ["tests/gpu/test_train.py"]


def test_complete_files_only(gpurun: SimpleNamespace, tmp_path: Path) -> None:
    Seen, out = gpurun.shards.Seen, gpurun.out.Out(tmp_path)
    seen = [Seen(["a.py::x", "b.py::y"], {"a.py::x": "passed", "b.py::y": "failed"}),
            Seen(["b.py::z", "c.py::z"], {"c.py::z": "skipped"})]  # fmt: skip
    gpurun.shards.complete(SimpleNamespace(out=out), seen)
    assert [line["file"] for line in out.lines("tests.jsonl")] == ["a.py", "c.py"]


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
        later = gpurun.cache.judged(gpurun.out.Out(tmp_path / "later"), FOUND)
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


def test_steps_are_json(gpurun: SimpleNamespace, tmp_path: Path) -> None:
    plan = gpurun.plans.Plan("one", 60, (gpurun.plans.Phase(
        (gpurun.steps.Step("is", python("print('fine')"), 30),)),))  # fmt: skip
    out = gpurun.out.Out(tmp_path)
    assert gpurun.run.execute(replace(plan), out, FOUND, {}, say=nothing) == 0
    first, second = map(json.loads, out.path("steps.jsonl").read_text().splitlines())
    assert first["device"] == FOUND["device"] and first["commit"] == FOUND["commit"]
    assert first["run"][:4] == str(time.gmtime().tm_year)
    assert (second["step"], second["state"], second["last"]) == ("is", "ok", "fine")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("runs", "code", "state"),
    [
        (True, 0, "ok"),
        (True, 86, "found something"),
        (False, 1, "exit 1"),  # such as "Device not supported": nothing was checked
        (False, 0, "exit 1"),
    ],
)
def test_what_a_sanitizer_says(
    gpurun: SimpleNamespace, tmp_path: Path, runs: bool, code: int, state: str
) -> None:
    (tmp_path / "test_one.py").write_text("def test_passes(): pass\ndef test_fails(): assert 0\n")
    tool, command = tmp_path / "tool", '"$@"' if runs else ":"
    tool.write_text(f"#!/bin/sh\n{command}\nexit {code}\n")
    tool.chmod(0o755)
    out = gpurun.out.Out(tmp_path / "out")
    arguments = (str(tmp_path / "test_one.py"), f"--rootdir={tmp_path}", "-c", "/dev/null")
    shard = gpurun.shards.Shard("memcheck", arguments, 60, wrap=(str(tool),), found=86)
    with gpurun.steps.Runner(out, "checked", 60, gpurun.plans.environment(), nothing) as runner:
        gpurun.shards.run(runner, shard)
    assert [result.state for result in runner.results] == [state]


def test_time_that_runs_out_before_any_test(gpurun: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text("import time\ntime.sleep(600)\n")
    arguments = (str(tmp_path / "test_one.py"), f"--rootdir={tmp_path}", "-c", "/dev/null")
    out = gpurun.out.Out(tmp_path / "out")
    shard = gpurun.shards.Shard("imports", arguments, 3)
    with gpurun.steps.Runner(out, "late", 60, gpurun.plans.environment(), nothing) as runner:
        gpurun.shards.run(runner, shard)
    (result,) = runner.results
    assert result.state == "time is up"
