"""The measuring core: what counts as a sample, in which order samples are taken, GPU time."""

from __future__ import annotations

import contextlib
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench.core import gputime, harness, measure, workloads
from bench.report import table
from benchkept import Kept

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
    from m3fast.text.tokenizer import Tokenizer

    lengths = workloads.ragged_lengths(24)
    assert (min(lengths), max(lengths)) == (7, 331)
    tokens = Tokenizer.from_dir(workloads.TINY).encode(workloads.texts(lengths, 1), 512)
    assert np.diff(tokens.offsets).tolist() == lengths
    assert workloads.padding_ratio(lengths) == pytest.approx(24 * 331 / sum(lengths))
    assert workloads.padding_ratio([1, 4, 4, 1], 2) == 1.0
