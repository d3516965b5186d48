"""What `Bench` records of its rows: ratios, aims, reasons, what is broken or wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bench.core import harness, measure
from bench.report import table
from benchkept import Kept

ROOT = Path(__file__).parents[2]


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
