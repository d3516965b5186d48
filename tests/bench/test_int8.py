"""Rows in eight bits: their judge, their products, what the report shows of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench.core import dtypes, eight, harness, measure, roof, workloads
from bench.cpu import child_load, child_memory
from bench.peers import eightbit, encoders, encodings
from bench.peers.linears import LINEARS, BareLinears
from bench.report import readme, table
from bench.report.page import page
from benchkept import Kept, made_up

TRUTH = "FlagEmbedding"


def _encoded(angle: float = 0.0, gap: float = 0.0) -> dict[str, Any]:
    """Two texts; the second's vectors are turned by so much, and its weight is more by `gap`."""
    turned = [np.cos(angle), np.sin(angle)]
    return {
        "dense_vecs": np.array([[1.0, 0.0], turned]),
        "lexical_weights": [{}, {"7": 0.5 + gap}],
        "colbert_vecs": [np.eye(2), np.array([turned, [0.0, 1.0]])],
    }


def _one(encoded: dict[str, Any]) -> dict[str, Any]:
    return {key: rows[1] for key, rows in encoded.items()}


def test_cosines_are_kept_over_all_texts() -> None:
    its, angles = encodings.Cosines(TRUTH), (0.1, 0.2)
    for angle in angles:
        assert its(TRUTH, _encoded(), _encoded()) == ""
        assert its("peer", _encoded(), _encoded(angle, angle)) == ""
    found = its.of("peer")
    expected = [1.0, np.cos(0.1), 1.0, np.cos(0.2)]
    assert found == pytest.approx({
        "texts": 4, "p1": np.quantile(expected, 0.01), "min": np.cos(0.2),
        "colbert": (np.cos(0.2) + 1) / 2, "gap": 0.2,
    }, abs=2e-6)  # fmt: skip
    assert its.of(TRUTH) is None and its.of("nobody") is None
    assert its("one", _one(_encoded()), _one(_encoded(0.1))) == ""
    one = its.of("one")
    assert one and (one["texts"], one["min"]) == (1, pytest.approx(np.cos(0.1), abs=1e-6))


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (_encoded(0.5), "dense: cosine 0.8776 with fp32"),
        (_encoded(gap=0.6), "sparse off by 0.6"),
        (_encoded(float("nan")), "dense: cosine nan"),
        (_encoded(gap=float("nan")), "sparse off by nan"),
        (_encoded() | {"colbert_vecs": [np.eye(2), np.eye(2)[:1]]}, "colbert: cosine -1"),
        (_encoded() | {"colbert_vecs": [np.eye(2), 0 * np.eye(2)]}, "colbert: cosine 0"),
        (_encoded() | {"dense_vecs": None}, "no dense"),
        (None, "no result"),
    ],
)
def test_int8_that_is_far_from_fp32_is_seen(found: Any, words: str) -> None:
    its = encodings.Cosines(TRUTH)
    its(TRUTH, _encoded(), _encoded())
    assert words in its("peer", _encoded(), found)


def test_without_fp32_nothing_in_int8_is_right() -> None:
    its = encodings.Cosines(TRUTH)
    assert "no FlagEmbedding" in its("m3fast", _encoded(), _encoded())
    assert its(LINEARS, _encoded(), None) == ""


def test_each_input_is_judged_once() -> None:
    """Not by m3fast, in a round that the truth sat out."""
    judged: list[tuple[str, Any, Any]] = []

    def judge(name: str, truth: Any, found: Any) -> str:
        judged.append((name, truth, found))
        return "too far" if found == 13 else ""

    now = 0.0

    def taking(seconds: float, more: int) -> measure.Candidate:
        def run(value: int) -> int:
            nonlocal now
            now += seconds
            return value + more

        return run

    found = measure.interleave(
        {"truth": taking(5, 0), "peer": taking(1, 0), "worse": taking(1, 10)},
        [1, 2, 3, 4], rounds=9, judged=4, judge=judge, hard=10.0, clock=lambda: now,
    )  # fmt: skip
    assert [j for j in judged if j[0] == "truth"] == [("truth", 1, 1), ("truth", 2, 2)]
    assert [j for j in judged if j[0] == "peer"] == [("peer", 1, 1), ("peer", 2, 2)]
    assert not found["worse"].wrong, "its 13 came when nothing was there to compare with"
    assert len(found["peer"].seconds) == 9


def test_cosines_stand_in_the_records() -> None:
    kept, its = Kept(), encodings.Cosines(TRUTH)
    makers = {
        TRUTH: lambda: lambda _: _encoded(),
        "m3fast": lambda: lambda angle: _encoded(angle),
        "peer": lambda: lambda angle: _encoded(0.5 * angle),
        "far": lambda: lambda _: _encoded(1.0),
    }
    row = harness.Row("row", shape="s", dtype="int8")
    kept.bench.compare(row, makers, [0.1, 0.2], rounds=3, judge=its, cosine=its.of)
    by = {record["candidate"]: record for record in kept.records}
    assert by["m3fast"]["cosine"]["min"] == pytest.approx(np.cos(0.2), abs=1e-6)
    assert by["peer"]["cosine"]["texts"] == 4 and "cosine" not in by[TRUTH]
    assert by["far"]["status"] == "wrong" and "cosine 0.5403" in by["far"]["reason"]
    assert "(cos 0.98" in table.figure(by["m3fast"])


def test_ways_to_products_of_int8_agree() -> None:
    x = roof.normal(24, 64, dtype=torch.int8)
    weight = roof.normal(32, 64, dtype=torch.int8)
    assert 20 < x.float().std() < 45
    expected = (x.double() @ weight.double().t()).float()
    ways = roof.products(x, weight)
    assert [*ways] == eight.names() and len(ways) > 1
    for name, way in ways.items():
        for its in (x, x.clone()):
            found = way(its).float()
            assert torch.allclose(found, expected, rtol=2**-8 if "bf16" in name else 0), name


def test_dynamic_linear() -> None:
    torch.manual_seed(0)
    before = torch.backends.quantized.engine
    x, weight = torch.randn(24, 64), torch.randn(32, 64) / 8
    assert (eight.dynamic(weight)(x) - x @ weight.t()).abs().max() < 0.2, "of 5"
    assert torch.backends.quantized.engine == before
    values, scales = eight.quantise(x)
    assert values.dtype == torch.int8 and (values * scales - x).abs().max() < scales.max()


def test_limit_of_int8_is_a_cpus() -> None:
    assert roof.Roof(torch.device("cpu"), toy=True).flops("int8")
    assert roof.Roof(torch.device("cuda", 0), toy=True).flops("int8") is None
    shape = workloads.Shape(1, 64)
    linears = BareLinears(shape, 8, torch.int8, trial=False)
    linears.make()(None)
    assert set(linears.ways.values()) == {eight.INT_MM}


def test_report_shows_cosines(tmp_path: Path) -> None:
    lost = {"texts": 72, "p1": 0.99859, "min": 0.99996, "colbert": 0.9971, "gap": 0.0312}
    name = "encode online, 24 texts, 24 layers, int8"
    about = {"row": name, "unit": "tokens/s", "tokens": 2558, "dtype": "int8", "samples": 3}
    rows = [
        made_up("1", p50=1.0, cosine=lost, **about),
        made_up("1", p50=2.0, ratio=2.0, candidate="OpenVINO", cosine=lost, **about),
        made_up("1", p50=9.0, ratio=9.0, candidate=TRUTH, **about),
    ]
    (tmp_path / "cpu.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    block = readme.markdown(tmp_path)
    assert (
        f"| {readme.LABELS[name]} | 2,558 tokens/s (cos 0.9985 / 0.9999) | 9.00× | "
        "2.00× (cos 0.9985 / 0.9999) |"
    ) in block
    assert readme.LEGEND_INT8 in block
    shown = page(rows, "cpu")
    assert "1,279 tokens/s (cos 0.9985 / 0.9999)" in shown
    assert "1st percentile / least of 72 texts" in shown
    assert "weights off by: 0.0312 m3fast, 0.0312 OpenVINO" in shown
    ours = {"p50": 0.01, "p99": 0.02, "unit": "s", "cosine": lost | {"min": 0.99859}}
    assert table.figure(ours) == "10 ms (p99 20 ms, cos 0.9985)"


def test_vnni(monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, here in (("avx2 avx512f", False), ("avx2 avx_vnni", True), ("amx_int8", True)):
        monkeypatch.setattr(
            Path, "read_text", lambda self, flags=flags: f"a: b\nflags\t: {flags}\n"
        )
        eightbit.has_vnni.cache_clear()
        assert eightbit.has_vnni() is here
    monkeypatch.undo()
    eightbit.has_vnni.cache_clear()


INT8_PEERS = {
    "onnxruntime": lambda path: encoders.onnx_runtime(path, 1, int8=True),
    "nncf": lambda path: encoders.openvino(path, 1, dtype="int8"),
    "openvino": lambda path: encoders.openvino(path, 1, dtype="int8", weights_only=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("package", INT8_PEERS)
def test_int8_peers_are_near_fp32(package: str) -> None:
    pytest.importorskip(package)
    pytest.importorskip("nncf" if package == "openvino" else package)
    path = workloads.checkpoint(workloads.Shape(2, 128))
    texts = workloads.texts([3, 40, 7, 90], 1)
    truth = encoders.m3fast(path)(texts)
    its = encodings.Cosines(TRUTH)
    its(TRUTH, truth, truth)
    assert its(package, truth, INT8_PEERS[package](path)(texts)) == ""
    found = its.of(package)
    assert found and 0.99 < found["min"] < 0.999999, "it is near, and it is quantised"


def test_ours_in_int8_by_each_way() -> None:
    """The adapter of the encoder's rows, and those of loads, give the same answers."""
    if lacks := dtypes.no_int8():
        pytest.skip(lacks)
    text = workloads.texts([12], 3)[0]
    encode = encoders.m3fast_int8(workloads.TINY)
    both = {
        "one": encode(text),
        "of a list": {key: rows[0] for key, rows in encode([text]).items()},
        "load": [*child_load.m3fast_int8(str(workloads.TINY), 1, text)][-1],
    }
    truth = encoders.m3fast(workloads.TINY)(text)
    its = encodings.Cosines(TRUTH)
    its(TRUTH, truth, truth)
    both["load"]["lexical_weights"] = {
        str(i): w for i, w in both["load"]["lexical_weights"].items()
    }
    for name, found in both.items():
        assert its(name, truth, found) == "", name
    dense = child_memory.LOADS["m3fast, int8"]()(str(workloads.TINY))(text)["dense_vecs"]
    assert np.array_equal(dense, both["one"]["dense_vecs"])
