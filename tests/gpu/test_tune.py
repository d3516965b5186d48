"""`m3fast tune`: what it times are the kernels themselves, under the keys they look up."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from m3fast.cli import tune
from m3fast.cli.tune import BRIEF, brief
from m3fast.cli.tune_cases import CASES, Sizes
from m3fast.kernels import tuning

# fp16 in the place of bf16, which the interpreter cannot multiply.
SMALL = Sizes(tokens=64, few=3, hidden=128, ffn=256, documents=2, queries=(32,))


def _cases(op: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    if device.type == "cpu":
        monkeypatch.setattr("m3fast.cli.tune_cases.HALVES", (torch.float16,))
    cases = list(CASES[op](device, SMALL))
    return [c for c in cases if device.type != "cpu" or "bfloat16" not in str(c.key)]


@pytest.mark.parametrize("op", CASES)
def test_configs_agree_and_a_row_comes_out(
    op: str, device: torch.device, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = _cases(op, device, monkeypatch)
    assert cases
    for case in cases[::3]:  # some of them, in some configs: each takes seconds to compile
        said: list[str] = []
        few = case.configs[:3]
        row = tuning.tune(
            case.op, case.key, few, case.prepare(), lambda call: 1.0, rounds=1,
            keep=tune.keep, same=tune.same, say=said.append,
        )  # fmt: skip
        assert row is not None, said
        assert not [line for line in said if "left out" in line]
        assert row["key"] == case.key
        assert tuning.nearest([row], case.op, case.key, case.configs[0]) == case.configs[0]


def _attention(device: torch.device) -> None:
    from m3fast.kernels.attention import varlen_attention

    for length in (20, 50, 100, 200):
        qkv = torch.zeros(length, 3, 2, 64, dtype=torch.float16, device=device)
        varlen_attention(qkv, np.array([0, length], np.int32), length)


def _layernorm(device: torch.device) -> None:
    from m3fast.kernels.layernorm import add_layernorm

    for tokens in (3, 2050):
        x = torch.zeros(tokens, 16, dtype=torch.float16, device=device)
        row = torch.ones(16, dtype=torch.float16, device=device)
        add_layernorm(x, x, row, row, row, 1e-5)


def _gelu(device: torch.device) -> None:
    from m3fast.kernels.gelu import bias_gelu_

    x = torch.zeros(2, 48, dtype=torch.float16, device=device)
    bias_gelu_(x, x[0].clone())


def _linear(device: torch.device) -> None:
    from m3fast.kernels.gpu.linear import linear_parts
    from m3fast.kernels.linear import linear

    x = torch.zeros(2, 128, dtype=torch.float16, device=device)
    square = torch.zeros(128, 128, dtype=torch.float16, device=device)
    linear(x, square.repeat(3, 1), early=True)
    linear_parts(x, square)


def _maxsim(device: torch.device) -> None:
    from m3fast.kernels.maxsim import maxsim

    x = torch.zeros(4, 64, dtype=torch.float16, device=device)
    maxsim(x, np.array([0, 4]), x, np.array([0, 4]))
    maxsim(x, np.array([0, 4]), x, np.array([0, 4]), np.zeros((1, 2), np.int64))


def _sparse(device: torch.device) -> None:
    from m3fast.kernels.sparse import sparse_csr

    ids = torch.tensor([5, 6], dtype=torch.int32, device=device)
    ends, texts = torch.tensor([0, 2]).to(ids), torch.zeros_like(ids)
    sparse_csr(ids, ids.float(), ends, texts, (0,))


LOOKS_UP = {
    "attention": _attention, "layernorm": _layernorm, "gelu": _gelu, "maxsim": _maxsim,
    "sparse": _sparse, "linear": _linear,
}  # fmt: skip


@pytest.mark.parametrize("op", CASES)
def test_keys_are_those_looked_up(
    op: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look-up of the op itself finds a row of the table that `tune` makes."""
    _forget_configs()
    seen: list[tuple[str, Any]] = []

    def tuned(name: str, key: Any, default: Any, device: torch.device) -> Any:
        seen.append((name, key))
        return default

    monkeypatch.setattr(tuning, "tuned", tuned)
    LOOKS_UP[op](device)
    _forget_configs()
    table = [
        {"op": c.op, "key": c.key, "config": {}} for c in _cases(op, device, monkeypatch)
    ]
    assert seen and {name for name, _ in seen} == {row["op"] for row in table}
    for name, key in seen:
        rows = [row for row in table if row["op"] == name]
        assert any(_fits(row["key"], key) for row in rows), f"{name}: nothing for {key}"


def _fits(row: Any, key: Any) -> bool:
    return row.keys() == key.keys() and all(
        type(row[k]) is type(v) and (isinstance(v, int) or row[k] == v) for k, v in key.items()
    )


def _forget_configs() -> None:
    """Configs are kept once looked up."""
    for name, module in list(sys.modules.items()):
        if name.startswith("m3fast.kernels") and hasattr(module, "_config"):
            getattr(module._config, "cache_clear", lambda: None)()


@pytest.mark.gpu
def test_table_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from m3fast.cli import main

    file = tmp_path / "table.json"
    assert main(["tune", "--op", "layernorm", "--output", str(file)]) == 0
    rows = tuning.read(file)
    assert [row["key"]["many"] for row in rows] == [1, 0]
    assert all(0 < row["seconds"] <= row["default"] for row in rows)
    assert f"{file}: 2 rows" in capsys.readouterr().out


def test_what_a_brief_run_tries(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes of the whole run, in the order of what matters, and the same kernels on less."""
    monkeypatch.setattr("m3fast.kernels.dispatch.arch", lambda device: 90)
    every = [case for op in CASES for case in CASES[op](device, Sizes())]
    cases = brief(every)
    assert all(case in every for case in cases) and len(cases) < len(every) / 2
    assert all(any(c.op == op and key.items() <= c.key.items() for c in cases) for op, key in BRIEF)
    assert (cases[0].op, cases[0].key["longest"]) == ("attention", "longer")
    small = tune.restricted(device)
    for case, other in zip(cases, small, strict=True):
        same = {name: value for name, value in case.key.items() if name != "rows"}
        assert (case.op, case.configs) == (other.op, other.configs)
        assert same.items() <= other.key.items()


class Clock:
    """Tuning takes a second a config, and stops where it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.tuned = 100.0, []
        monkeypatch.setattr(tune.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(tuning, "tune", self.tune)
        monkeypatch.setattr(tune, "_device", lambda name: torch.device("cpu"))
        for name in ("attention", "layernorm", "gelu", "few_rows", "maxsim", "sparse"):
            monkeypatch.setattr(f"m3fast.cli.tune_cases._{name}", lambda *given: None)

    def tune(self, op: str, key: Any, configs: Any, *rest: Any, **more: Any) -> dict[str, Any]:
        done = 0
        while done < len(configs) and not (done and more["time_is_up"]()):
            done += 1
            self.now += 1
        self.tuned.append((op, done))
        row = {"op": op, "key": dict(key), "config": {}}
        return row | ({"untried": len(configs) - done} if done < len(configs) else {})


def test_time_that_is_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from m3fast.cli import main

    clock, file = Clock(monkeypatch), tmp_path / "table.json"
    cases = brief([case for op in CASES for case in CASES[op](torch.device("cpu"), Sizes())])
    counts = [len(case.configs) for case in cases]
    assert main(["tune", "--seconds", str(20 / tune.USED), "--output", str(file)]) == 0
    done = [count for _, count in clock.tuned]
    # Half of the 20 seconds, a second each, and what has begun; then half of what is left.
    assert counts[0] > done[0] == 11 and done[1] == min(counts[1], 5) and sum(done) <= 22
    rows = tuning.read(file)
    assert [row["op"] for row in rows] == [case.op for case in cases[: len(done)]]
    said = capsys.readouterr().out.splitlines()
    key = "dtype=torch.bfloat16 dim=64 longest=longer"
    assert said[0] == f"left out: attention {key}: {counts[0] - 11} configs not tried"
    left = [n - m for n, m in zip(counts, [*done, *[0] * 99], strict=False)]
    shown = [int(re.findall(r"(\d+) configs not tried", line)[0]) for line in said[:-2]]
    assert shown == [n for n in left if n]
    assert re.fullmatch(r"left out: \d+ other keys of \d+ configs: without .* all run", said[-2])
    assert said[-1] == f"{file}: {len(done)} rows"


def test_a_brief_run_of_one_op(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from m3fast.cli import main

    clock = Clock(monkeypatch)
    args = ["tune", "--seconds", "1e6", "--op", "layernorm", "--output", str(tmp_path / "t.json")]
    assert main(args) == 0
    assert {op for op, _ in clock.tuned} == {"layernorm"} and len(clock.tuned) == 2


def test_a_table_is_of_one_card(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from m3fast.cli import main

    Clock(monkeypatch)
    file = tmp_path / "t.json"
    args = ["tune", "--seconds", "1e6", "--op", "gelu", "--output", str(file)]
    codes = main(args), main(args)
    assert codes == (0, 0)
    (row,) = tuning.read(file)
    assert row["device"] == "cpu" and row["torch"] == torch.__version__ and row["triton"]
    tuning.save(file, [row | {"device": "NVIDIA H100 80GB HBM3"}])
    assert main(args) == 2
    assert "expected rows of cpu, found NVIDIA H100 80GB HBM3's" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["0", "-1", "nan"])
def test_no_time_at_all(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    from m3fast.cli import main

    assert main(["tune", "--seconds", seconds]) == 2
    assert "--seconds: expected a number above 0, found " in capsys.readouterr().err


def test_unknown_op(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from m3fast.cli import main

    device: Callable[[str], torch.device] = lambda name: torch.device("cpu")  # noqa: E731
    monkeypatch.setattr(tune, "_device", device)
    assert main(["tune", "--op", "sorting"]) == 2
    assert "--op: expected one of attention, " in capsys.readouterr().err
