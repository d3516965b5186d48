"""Tables of measured configs: which row a shape takes, and how `tune` makes one."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from m3fast.kernels import tuning


@dataclass(frozen=True)
class Config:
    rows: int
    warps: int = 4


TABLE = [
    {"op": "a", "key": {"dtype": "fp16", "n": 100}, "config": {"rows": 1}},
    {"op": "a", "key": {"dtype": "fp16", "n": 1000}, "config": {"rows": 2, "warps": 8}},
    {"op": "b", "key": {"dtype": "fp16", "n": 100}, "config": {"rows": 3}},
]


@pytest.mark.parametrize(
    ("op", "key", "rows"),
    [
        ("a", {"dtype": "fp16", "n": 100}, 1),
        ("a", {"dtype": "fp16", "n": 300}, 1),  # by ratio, √(100·1000) = 316 parts them
        ("a", {"dtype": "fp16", "n": 330}, 2),
        ("a", {"dtype": "fp16", "n": 0}, 1),
        ("a", {"dtype": "bf16", "n": 100}, 9),
        ("a", {"n": 100}, 9),
        ("b", {"dtype": "fp16", "n": 1000}, 3),
        ("c", {"dtype": "fp16", "n": 100}, 9),
    ],
)
def test_nearest(op: str, key: dict[str, str | int], rows: int) -> None:
    assert tuning.nearest(TABLE, op, key, Config(9)).rows == rows
    assert tuning.nearest(TABLE, op, key, Config(9)).warps == (8 if rows == 2 else 4)


class Stopwatch:
    """Takes as long as the config says, ten times longer in its first round."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.per, self.order, self.last = seconds, [], 0

    def launch(self, config: Config) -> int:
        if config.rows == 666:
            raise RuntimeError("out of resource:\n shared memory")
        self.last = config.rows
        return 0 if config.rows == 7 else 1

    def seconds(self, call) -> float:
        call()
        self.order.append(self.last)
        return self.per[self.last] * (10 if len(self.order) <= len(self.per) else 1)


def test_tune_picks_the_least_median_and_says_what_it_left_out() -> None:
    clock = Stopwatch({1: 3e-6, 2: 1e-6, 3: 2e-6})
    said: list[str] = []
    row = tuning.tune(
        "op", {"n": 5}, [Config(1), Config(666), Config(7), Config(2), Config(3)],
        clock.launch, clock.seconds, rounds=3, keep=lambda r: (r,), same=lambda a, b: a == b,
        say=said.append,
    )  # fmt: skip
    assert row == {"op": "op", "key": {"n": 5}, "config": {"rows": 2, "warps": 4},
                   "seconds": 1e-6, "default": 3e-6}  # fmt: skip
    assert clock.order == [1, 2, 3, 2, 3, 1, 3, 1, 2], "in turn, and each goes first once"
    assert "RuntimeError: out of resource: shared memory" in said[0] and "rows=666" in said[0]
    assert "rows=7" in said[1] and "wrong result" in said[1]
    assert said[2:] == [f"op n=5: {Config(n)} {t} µs" for n, t in ((1, 3.0), (2, 1.0), (3, 2.0))]


def test_what_lost_by_far_is_timed_once() -> None:
    clock = Stopwatch({1: 9e-6, 2: 1e-6, 3: 1.2e-6, 4: 1.6e-6})
    row = tuning.tune(
        "op", {}, [Config(n) for n in (1, 2, 3, 4)], clock.launch, clock.seconds, rounds=3, drop=1.5
    )
    assert clock.order == [1, 2, 3, 4, 2, 3, 1, 3, 1, 2], "the default stays, to compare with"
    assert row and row["config"]["rows"] == 2 and row["default"] == 9e-6


@pytest.mark.parametrize(
    ("asked", "order", "untried"),
    [
        (1, [1], 2),  # before the second config
        (2, [1, 2], 1),
        (3, [1, 2, 3], 0),  # before the second round
        (4, [1, 2, 3, 2, 3, 1], 0),
    ],
)
def test_no_work_starts_once_time_is_up(asked: int, order: list[int], untried: int) -> None:
    clock, up = Stopwatch({1: 3e-6, 2: 1e-6, 3: 2e-6}), iter(range(1, 99))
    row = tuning.tune(
        "op", {}, [Config(n) for n in (1, 2, 3)], clock.launch, clock.seconds, rounds=3,
        time_is_up=lambda: next(up) >= asked,
    )  # fmt: skip
    assert clock.order == order and row
    assert row.get("untried", 0) == untried
    assert row["config"]["rows"] == (2 if asked > 1 else 1)


def test_a_default_that_is_not_even_itself_is_left_out() -> None:
    """What a broken kernel makes is no measure of the others."""
    said: list[str] = []
    row = tuning.tune(
        "op", {}, [Config(1), Config(2), Config(3)], lambda c: math.nan if c.rows == 1 else 5.0,
        lambda call: 1e-6 * (1 + call()), same=lambda a, b: a == b, say=said.append,
    )  # fmt: skip
    assert row and row["config"]["rows"] == 2 and row["default"] is None
    assert "rows=1" in said[0] and "wrong result" in said[0]


def test_a_stopped_write_leaves_the_old_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpu.json"
    tuning.save(file, TABLE)
    monkeypatch.setattr(Path, "replace", lambda self, to: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        tuning.save(file, [])
    assert tuning.read(file) == TABLE


def test_tune_where_nothing_runs() -> None:
    assert tuning.tune("op", {}, [Config(666)], Stopwatch({}).launch, lambda call: 0.0) is None


def test_tables_are_written_merged_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"op": "a", "key": {"dtype": "fp16", "n": 100}, "config": {"rows": 5}, "seconds": 1e-6}
    rows = tuning.merged(TABLE, [row])
    assert rows == [*TABLE[1:], row]
    file = tmp_path / "tuned" / "cpu.json"
    tuning.save(file, rows)
    assert json.loads(file.read_text()) == rows
    monkeypatch.setattr(tuning, "FOLDER", file.parent)
    tuning._table.cache_clear()
    try:
        key = {"dtype": "fp16", "n": 90}
        assert tuning.tuned("a", key, Config(9), torch.device("cpu")) == Config(5)
    finally:
        tuning._table.cache_clear()


def test_committed_tables_fit_the_configs() -> None:
    for file in tuning.FOLDER.glob("*.json"):
        for row in json.loads(file.read_text()):
            assert {"op", "key", "config"} <= set(row)
