"""The regression check: a slower m3fast is found, a slower machine is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bench.core import measure
from bench.report import regress
from bench.report.__main__ import main
from benchkept import made_up

Record = dict[str, Any]


def run(
    day: int, ours: float, peers: dict[str, float], slow: float = 1.0, row: str = "r", **more: Any
) -> list[Record]:
    """Records of a run in which m3fast needs `ours` seconds; the machine is `slow` throughout."""
    noise = [0.97, 0.98, 1.0, 1.01, 1.04]
    times = [ours * slow * n for n in noise]
    about = {"run": f"2026-01-0{day}", "commit": str(day) * 40, "row": row, "dtype": "float32"}
    records = [made_up(**(about | measure.quantiles(times) | more))]
    for name, seconds in peers.items():
        theirs = [seconds * slow * n for n in reversed(noise)]
        spread = measure.spread(theirs, times)
        found = {"candidate": name, "ratio": measure.ratio(theirs, times), "ratios": spread}
        records.append(made_up(**(about | measure.quantiles(theirs) | found | more)))
    return records


TWO = {"A": 4.0, "B": 6.0}


def test_a_regression_is_found() -> None:
    found = regress.check(run(1, 1.0, TWO) + run(2, 1.3, TWO))
    assert found.slower == ["r: 1.30 times as slow beside A, B (111111111)"]
    assert found.lines()[0] == "regression check: 1 of 1 rows that 111111111 has too became slower"


@pytest.mark.parametrize("slow", [0.5, 3.0])
def test_drift_is_none(slow: float) -> None:
    assert regress.check(run(1, 1.0, TWO) + run(2, 1.0, TWO, slow)).slower == []
    # Nor does it hide one.
    assert regress.check(run(1, 1.0, TWO) + run(2, 1.3, TWO, slow)).slower


def test_small_changes_within_noise_are_none() -> None:
    assert regress.check(run(1, 1.0, TWO) + run(2, 1.04, TWO)).slower == []


def test_one_peer_of_three_that_became_faster_is_none() -> None:
    three = TWO | {"C": 5.0}
    found = regress.check(run(1, 1.0, three) + run(2, 1.0, three | {"C": 2.0}))
    assert found.slower == [] and found.rows == 1


def test_a_peer_of_another_version_does_not_count() -> None:
    old = run(1, 1.0, {"OpenVINO": 4.0}, versions={"openvino": "1"})
    new = run(2, 1.0, {"OpenVINO": 2.0}, versions={"openvino": "2"})
    assert regress.check(old + new).slower == []


@pytest.mark.parametrize(("ours", "slow", "found"), [(1.0, 2.0, 0), (1.3, 2.0, 1), (1.3, 0.5, 1)])
def test_rows_without_peers_count_the_drift_of_the_others(
    ours: float, slow: float, found: int
) -> None:
    old = run(1, 1.0, TWO) + run(1, 1.0, {}, row="alone")
    new = run(2, 1.0, TWO, slow) + run(2, ours, {}, slow, row="alone")
    assert len(regress.check(old + new).slower) == found


def test_what_is_compared_with_what() -> None:
    first, slower, again = run(1, 1.0, TWO), run(2, 1.3, TWO), run(3, 1.3, TWO)
    # With the last commit before, not the best one; a second run of one commit is no other commit.
    assert regress.check(first + slower + again).slower == []
    for record in again:
        record["commit"] = "2" * 40
    assert regress.check(first + slower + again).slower
    assert regress.check(first + slower + again, "2026-01-01").rows == 0
    # Another workload under the same name is not comparable.
    assert regress.check(first + run(2, 9.0, TWO, shape="larger")).rows == 0
    assert "no earlier commit" in regress.check(first).lines()[0]


def test_memory_has_no_drift() -> None:
    old, new = (run(day, mib, {}, unit="MiB") for day, mib in ((1, 100.0), (2, 120.0)))
    assert regress.check(old + new).slower == ["r: 1.20 times the memory (111111111)"]


@pytest.mark.parametrize(("ours", "status"), [(1.0, 0), (1.3, 1)])
def test_check_from_the_command_line(
    ours: float, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from bench.core import record

    record.append(run(1, 1.0, TWO) + run(2, ours, TWO), "", tmp_path / "cpu.jsonl")
    assert main(["--check", "--results", str(tmp_path)]) == status
    assert capsys.readouterr().out.startswith("cpu: regression check: ")
