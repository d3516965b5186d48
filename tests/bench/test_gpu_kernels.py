"""The table of a batch's kernels: shares, order, gaps, and what is recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bench.gpu import kernels
from bench.gpu.kernels import Node
from bench.report import table

from m3fast.runner import gpu
from m3fast.runner.cpu import Runner

NODES = [Node("copy", 10.0, 12.0), Node("gemm", 12.5, 18.5), Node("gemm", 18.5, 20.5)]


def test_tables() -> None:
    assert kernels.shares(NODES) == [
        {"name": "gemm", "calls": 2, "us": 8.0, "share": 0.8},
        {"name": "copy", "calls": 1, "us": 2.0, "share": 0.2},
    ]
    assert kernels.in_order(NODES) == [
        {"name": "copy", "us": 2.0, "gap": 0.0},
        {"name": "gemm", "us": 6.0, "gap": 0.5},
        {"name": "gemm", "us": 2.0, "gap": 0.0},
    ]
    assert kernels.sums(NODES) == {"total_us": 10.5, "kernels_us": 10.0}
    assert kernels.shares([]) == kernels.in_order([]) == []
    assert kernels.sums([]) == {"total_us": 0.0, "kernels_us": 0.0}


def test_the_median_of_the_profiles(monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter([[Node("a", 0.0, took)] for took in (9.0, 1.0, 5.0)])
    monkeypatch.setattr(kernels, "profiled", lambda work, device: next(found))
    assert kernels.typical(lambda: None, torch.device("cpu"), 3)[0].end == 5.0


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<int>, "
         "std::array<char*, 1ul> >(int, at::native::FillFunctor<int>)",
         "vectorized_elementwise_kernel"),
        ("Memcpy HtoD (Pinned -> Device)", "Memcpy HtoD"),
        ("attention_kernel", "attention_kernel"),
    ],
)  # fmt: skip
def test_names_are_brief(name: str, shown: str) -> None:
    assert kernels.brief(name) == shown


def test_what_ran_is_seen_in_order() -> None:
    x = torch.ones(2, 2)
    nodes = kernels.profiled(lambda: (x @ x).exp(), torch.device("cpu"))
    names = [node.name for node in nodes]
    assert names.index("aten::matmul") < names.index("aten::exp")
    assert "aten::mm" not in names, "a part of matmul counts once"
    assert all(node.took >= 0 for node in nodes)


def test_both_parts_are_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the CPU's runner: interpreted kernels need a process of their own."""

    class OnCpu(Runner):
        stream, graphs = None, ()

        def __init__(self, *given: Any, graphs: bool) -> None:
            super().__init__(*given)

    monkeypatch.setattr(kernels, "_interpret", lambda: None)
    monkeypatch.setattr(gpu, "GpuRunner", OnCpu)
    file = tmp_path / "kernels.jsonl"
    assert kernels.main(["--smoke", "--output", str(file)]) == 0
    passages, query = table.read(file)
    assert [r["kernels"] for r in (passages, query)] == ["passages", "query"]
    for r in (passages, query):
        assert {"device", "commit", "dirty", "tree", "versions", "run", "total_us"} <= set(r)
        assert r["scale"] == "smoke" and r["table"] and r["alone_us"] > 0
    assert (passages["tokens"], query["tokens"]) == (40, 20)
    assert "nodes" not in passages and len(query["nodes"]) > len(query["table"])
    shown = capsys.readouterr().out.splitlines()
    assert "\n".join(shown) == f"{passages['words']}\n{query['words']}"
    assert shown[0].startswith("passages: 40 tokens") and len(shown) <= 60
    assert all(len(line) <= 120 for line in shown)


def test_no_device_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(SystemExit):
        kernels.main(["--output", str(tmp_path / "none.jsonl")])
    assert "expected a CUDA device, found none" in capsys.readouterr().err
