"""The benchmarks' own machinery: what counts as a sample, what is recorded, what README prints."""

from __future__ import annotations

import contextlib
import re
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench.core import gputime, harness, measure, workloads
from bench.core.paths import RESULTS
from bench.report import table
from benchkept import Kept, pytest_of

ROOT = Path(__file__).parents[2]


class Clock:
    """A candidate that takes a known time, and the clock that shows it."""

    def __init__(self) -> None:
        self.now, self.calls = 0.0, []

    def __call__(self) -> float:
        return self.now

    def takes(self, name: str, seconds: float, result: Any = 0) -> measure.Candidate:
        def run(value: Any) -> Any:
            self.calls.append((name, value))
            self.now += seconds
            return result

        return run


def test_rounds_interleave_with_rotating_order_and_inputs() -> None:
    clock = Clock()
    pair = {"a": clock.takes("a", 2.0), "b": clock.takes("b", 1.0)}
    found = measure.interleave(pair, ["x", "y"], rounds=3, warm="w", clock=clock)
    assert "".join(name + value for name, value in clock.calls) == "awbwaxbxbyayaxbx"
    assert found["a"].seconds == [2.0] * 3 and found["b"].seconds == [1.0] * 3


def test_wrong_and_failing_candidates_have_no_time() -> None:
    clock = Clock()

    def broken(value: Any) -> Any:
        raise RuntimeError("no such instruction\nsecond line")

    found = measure.interleave(
        {"broken": broken, "truth": clock.takes("t", 1.0, 5), "liar": clock.takes("l", 0.1, 6)},
        [0],
        rounds=4,
        judge=lambda name, truth, result: "" if truth == result else f"{result} is not {truth}",
        clock=clock,
    )
    assert found["liar"].wrong == "6 is not 5" and found["liar"].seconds == []
    assert found["broken"].wrong == "failed: RuntimeError: no such instruction"
    assert found["broken"].seconds == [] and len(found["truth"].seconds) == 4
    # Warm-up and one round, then no more of anybody's time.
    assert [name for name, _ in clock.calls].count("l") == 2


def test_budget_stops_a_slow_candidate_after_the_least_rounds() -> None:
    clock = Clock()
    pair = {"slow": clock.takes("s", 10.0), "quick": clock.takes("q", 0.1)}
    found = measure.interleave(pair, [0], rounds=9, budget=5.0, least=3, clock=clock)
    assert len(found["slow"].seconds) == 3 and len(found["quick"].seconds) == 9


class Device:
    """torch.cuda as far as `gputime.Events` uses it: work takes no time until the sleep is over."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.now = 0.0  # milliseconds
        device = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                device.log.append("event")
                self.at = device.now

            def synchronize(self) -> None:
                device.log.append("wait")

            def elapsed_time(self, end: Any) -> float:
                return end.at - self.at

        def entered(what: Any) -> Any:
            @contextlib.contextmanager
            def inside() -> Any:
                self.log.append(f"in {what}")
                yield
                self.log.append(f"out {what}")

            return inside()

        found = types.SimpleNamespace(L2_cache_size=100)
        for name, fake in {
            "get_device_properties": lambda device: found,
            "Event": Event,
            "synchronize": lambda: self.log.append("wait"),
            "_sleep": lambda cycles: self.log.append(f"sleep {cycles}"),
            "device": lambda device: entered("device"),
            "stream": entered,
        }.items():
            monkeypatch.setattr(torch.cuda, name, fake)

    def works(self, milliseconds: float) -> None:
        self.log.append("work")
        self.now += milliseconds


def test_gpu_time_begins_after_the_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    watch = gputime.Events(torch.device("cpu"), 1e-3, "a stream")
    assert watch._flush.nbytes == 200
    before = watch._flush.clone()
    stop = watch()
    device.works(3.0)
    assert stop() == pytest.approx(3e-3)
    assert device.log == [
        "in device", "in a stream", "wait", "sleep 2000000", "event",
        "work", "event", "wait", "out a stream", "out device",
    ]  # fmt: skip
    assert not torch.equal(before, watch._flush), "the cache is flushed"


def test_gpu_rows_are_timed_by_events(monkeypatch: pytest.MonkeyPatch) -> None:
    device, kept = Device(monkeypatch), Kept("quick")
    kept.bench.device = torch.device("cuda:0")
    kept.bench.roof = types.SimpleNamespace(flops=lambda dtype: 3e12, bandwidth=1e9)
    monkeypatch.setattr(torch, "empty", lambda *a, **k: torch.zeros(*a, dtype=torch.uint8))
    kept.bench.compare(
        harness.Row("row", shape="s", unit="TFLOP/s", work=3e9),
        {"m3fast": lambda: lambda _: device.works(2.0), "peer": lambda: lambda _: device.works(6)},
        [0],
        rounds=100,
        aims={"m3fast": harness.micros(2000.5), "peer": harness.times(3.5)},
        ahead=1e-3,
    )
    ours, peer = kept.records
    assert ours["p50"] == pytest.approx(2e-3) and ours["samples"] == 20
    assert (ours["aim"], ours["met"]) == ("≤ 2000.5 µs", True)
    assert (peer["ratio"], peer["met"]) == (pytest.approx(3), False)
    assert (ours["share"], peer["share"]) == (pytest.approx(0.5), pytest.approx(1 / 6, rel=1e-4))
    assert table.cells(kept.records)[0][5] == "50 %"
    assert table.cells(kept.records)[0][1] == "1.5 TFLOP/s"


def test_ratio_goes_pair_by_pair() -> None:
    # The machine is ten times slower in the last two rounds; the ratio of medians would be 10.
    assert measure.ratio([2.0, 20.0, 20.0], [1.0, 1.0 * 10, 10.0]) == 2.0
    assert measure.ratio([2, 2, 20], [1, 10, 10]) == 2
    assert measure.ratio([], [1.0]) is None


def test_p99_needs_two_hundred_samples() -> None:
    assert set(measure.quantiles(range(199))) == {"p20", "p50", "p80"}
    found = measure.quantiles(range(200))
    assert found["p99"] == pytest.approx(np.quantile(range(200), 0.99))
    assert found["p20"] == pytest.approx(np.quantile(range(200), 0.2))
    assert measure.quantiles([]) == {}


def test_texts_have_the_lengths_asked_for() -> None:
    from m3fast.tokenizer import Tokenizer

    lengths = workloads.ragged_lengths(24)
    assert (min(lengths), max(lengths)) == (7, 331)
    tokens = Tokenizer.from_dir(workloads.TINY).encode(workloads.texts(lengths, 1), 512)
    assert np.diff(tokens.offsets).tolist() == lengths
    assert workloads.padding_ratio(lengths) == pytest.approx(24 * 331 / sum(lengths))
    assert workloads.padding_ratio([1, 4, 4, 1], 2) == 1.0


def test_records_say_ratio_aim_and_reasons() -> None:
    kept = Kept()

    def absent() -> measure.Candidate:
        raise measure.Absent("not installed")

    clock = {"m3fast": lambda _: 1, "other": lambda _: 1}
    kept.bench.compare(
        harness.Row("row", shape="1 x 1", tokens=10, unit="tokens/s"),
        {"other": lambda: clock["other"], "m3fast": lambda: clock["m3fast"], "gone": absent},
        [0],
        rounds=3,
        aims={"other": harness.times(0.0)},
    )
    ours, other, gone = kept.records
    assert (ours["candidate"], other["candidate"], gone["candidate"]) == ("m3fast", "other", "gone")
    assert other["met"] is True and other["aim"] == "≥ 0×" and other["samples"] == 3
    assert {"p20", "p50", "p80"} <= set(ours) and "p50" not in gone
    assert gone["reason"] == "not installed"
    lines = table.cells(kept.records)
    assert [line[2] for line in lines] == ["other", "gone"] and lines[1][3] == "skipped"


def test_a_broken_peer_is_on_record_and_the_row_goes_on() -> None:
    def broken() -> measure.Candidate:
        raise AttributeError("no such option\nsecond line")

    makers = {"m3fast": lambda: lambda _: 1, "peer": broken}
    kept = Kept()
    kept.bench.compare(harness.Row("row", shape="s"), makers, [0], rounds=3)
    assert kept.records[1]["reason"] == "failed: AttributeError: no such option"
    with pytest.raises(AttributeError):
        Kept("smoke").bench.compare(harness.Row("row", shape="s"), makers, [0], rounds=3)


def test_m3fast_being_wrong_fails_the_run_but_is_on_record() -> None:
    kept = Kept()
    with pytest.raises(pytest.fail.Exception, match="2 is not 1"):
        kept.bench.compare(
            harness.Row("row", shape="s"),
            {"truth": lambda: lambda _: 1, "m3fast": lambda: lambda _: 2},
            [0],
            rounds=1,
            judge=lambda name, truth, found: "" if truth == found else f"{found} is not {truth}",
        )
    assert kept.records[0]["status"] == "wrong" and "p50" not in kept.records[0]
    assert table.cells(kept.records) == [["row", "wrong", "", "", "", "", "", ""]]
    assert table.notes(kept.records) == "wrong, 2 is not 1"


@pytest.mark.parametrize(
    ("aim", "text", "good", "bad"),
    [
        (harness.times(5), "≥ 5×", 5.0, 4.9),
        (harness.share(0.85), "≥ 85 %", 0.85, 0.84),
        (harness.micros(60), "≤ 60 µs", 6e-5, 6.1e-5),
        (harness.at_most(0.15, " s"), "≤ 0.15 s", 0.15, 0.16),
    ],
)
def test_aims(aim: Any, text: str, good: float, bad: float) -> None:
    assert str(aim) == text and aim.met(good) and not aim.met(bad)


def _pytest(*arguments: str, **environment: str) -> str:
    done = pytest_of(*arguments, **environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    return done.stdout


@pytest.mark.slow
def test_smoke_round_of_every_row() -> None:
    before = {f: f.read_bytes() for f in RESULTS.glob("*")}
    # test_bench_serve.py runs that file, and looks at its records too.
    assert "passed" in _pytest("bench/", "--ignore", "bench/serve/bench_serve.py")
    assert {f: f.read_bytes() for f in RESULTS.glob("*")} == before


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
    before = {f: f.read_bytes() for f in RESULTS.glob("*")}
    shown = _pytest("bench/cpu/bench_sparse.py", "--benchmark", "--quick")
    assert "Workload" in shown and "sparse dicts, 256 x 512 tokens" in shown
    assert {f: f.read_bytes() for f in RESULTS.glob("*")} == before, "--quick is no record"
