"""Plots from made-up records: which there are, what they show, the same bytes each time."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from bench.report import plots, readme, series
from benchkept import made_up

ROOT = Path(__file__).parents[2]


def _rows() -> list[list[dict[str, Any]]]:
    rows = []
    for length in (32, 128, 512):
        its = dict(row=f"scaling: throughput, {length} tokens", suite="scaling", dtype="float32",
                   unit="tokens/s", tokens=4096, length=length)  # fmt: skip
        peer = its | dict(candidate="FlagEmbedding")
        rows.append([made_up("1", p50=2.0, share=0.5, **its), made_up("1", p50=4.0, **peer)])
    for batch in (1, 2, 4):
        its = dict(row=f"batch of {batch}, 2 layers", suite="latency", dtype="float32", length=20,
                   batch=batch, test="bench_latency.py::test_batches")  # fmt: skip
        rows.append([made_up("1", p50=0.01 * batch, **its)])
    times = [0.01 + 0.0001 * i for i in range(200)]
    its = dict(row="one query", suite="latency", dtype="float32", sorted=times, p50=0.02)
    rows.append([made_up("1", **its), made_up("1", candidate="OpenVINO", **its)])
    return rows


def test_plots_have_what_they_are_to_show(tmp_path: Path) -> None:
    found = {f.name.removeprefix("cpu-"): f for f in plots.draw(_rows(), "cpu", tmp_path)}
    assert list(found) == ["length.svg", "latency.svg", "batch.svg"]
    said = {
        name: re.findall(r"<text [^>]*>(.*?)</text>", file.read_text())
        for name, file in found.items()
    }
    assert {"tokens per text", "tokens / s", "limit", "FlagEmbedding", "128"} <= {
        *said["length.svg"]
    }
    assert {"one query", "% of calls done", "OpenVINO"} <= {*said["latency.svg"]}
    assert {"texts per call", "ms per text", "20 tokens, float32, 2 layers"} <= {*said["batch.svg"]}


def test_limit_is_what_a_full_share_would_be() -> None:
    lines = series.find_length(_rows())["float32"]
    assert lines["m3fast"][0] == (32, 2048.0) and lines["limit"][0] == (32, 4096.0)
    batches = series.find_batch(_rows())["20 tokens, float32, 2 layers"]
    assert [x for x, _ in batches["m3fast"]] == [1, 2, 4]
    assert [y for _, y in batches["m3fast"]] == pytest.approx([10.0] * 3)


def test_plots_change_with_records_only(tmp_path: Path) -> None:
    assert len(plots.draw(_rows(), "cpu", tmp_path)) == 3
    assert plots.draw(_rows(), "cpu", tmp_path) == []
    assert "<dc:date>" not in (tmp_path / "cpu-length.svg").read_text()
    # One that no rows are left for goes, another device's stays.
    (tmp_path / "gpu-length.svg").touch()
    plots.draw(_rows()[:3], "cpu", tmp_path)
    assert {f.name for f in tmp_path.iterdir()} == {"cpu-length.svg", "gpu-length.svg"}


def test_readme_links_only_plots_that_are_there() -> None:
    block = readme.markdown()
    linked = set(re.findall(r"\]\((docs/bench/[^)]+)\)", block))
    assert all((ROOT / file).exists() for file in linked), "run: make report"
