"""`m3fast eval --against`: its tables, its JSON, and bad usage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoints import make_checkpoint

import m3fast
from m3fast.cli import eval as command
from m3fast.cli import eval_against, main
from m3fast.evaluate import builtin, compare

pytest.importorskip("ir_measures")
LANGUAGES = ("de", "zh")


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if from a wheel: no checkout, so the built-in set."""
    monkeypatch.setattr(command, "_xquad", lambda: None)


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    capsys.readouterr()
    given = ("eval", "--device", "cpu", "--languages", ",".join(LANGUAGES), *argv)
    assert main([str(arg) for arg in given]) == 0
    return capsys.readouterr().out


def cells(block: str) -> dict[str, list[str]]:
    """Numbers of a table by the name of the row."""
    rows = [line.split("  ") for line in block.split("\n")]
    return {row[0]: [cell.strip() for cell in row[1:] if cell.strip()] for row in rows}


def test_tables_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "loss.json"
    shown = run(capsys, "--dtype", "int8", "--against", "float32", "--json", file)
    ours, theirs = (m3fast.Engine.from_pretrained(device="cpu", dtype=d) for d in ("int8", "fp32"))
    data = [each for each in builtin() if each.name in LANGUAGES]
    found = compare(ours, theirs, data)
    bits = eval_against.int8_bits(ours)

    head, *blocks = shown.strip().split("\n\n")
    assert head.startswith("m3fast-tiny, int8, against float32, on the built-in set")
    assert f"What int8 layers read has {bits} bits on this CPU." in head
    assert len(blocks) == 4 + 4
    a, b = found.found, found.against
    for block, measure in zip(blocks, ("nDCG@10", "Recall@100", "MRR@10", "R@1"), strict=False):
        table = cells(block)
        assert table[measure] == ["int8", "float32", "change", *LANGUAGES]
        for title, mode in (("dense", "dense"), ("multi-vector", "colbert"), ("all", "all")):
            values = [100 * each.mean[mode][measure] for each in (a, b)]
            each = zip(a.results, b.results, strict=True)
            changes = [100 * (x.values[mode][measure] - y.values[mode][measure]) for x, y in each]
            wanted = [values[0], values[1], values[0] - values[1], *changes]
            assert [float(v) for v in table[title]] == pytest.approx(wanted, abs=0.051)
    common = cells(blocks[4])["dense"]
    assert common == [f"{100 * found.mean_agreement['dense'][k]:.1f}" for k in ("best", "first")]
    near = found.nearness["colbert"]["queries"]
    assert cells(blocks[5])["multi-vector, queries"] == [
        f"{near[key]:.5f}" for key in ("p1", "median", "min")
    ]
    terms = found.nearness["sparse"]["documents"]
    assert cells(blocks[6])["documents"] == [f"{100 * terms[k]:.2f}" for k in ("best", "error")]
    assert f"{found.nearness['colbert']['maxsim']['mean']:.5f} on average" in blocks[7]

    report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    assert (report["dtype"], report["int8_bits"], report["mean"]) == ("int8", bits, a.mean)
    other = report["against"]
    assert (other["model"], other["dtype"]) == ("m3fast-tiny", "float32")
    assert "int8_bits" not in other
    assert (other["mean"], other["nearness"]) == (b.mean, found.nearness)
    assert [r["values"] for r in other["results"]] == [r.values for r in b.results]
    assert other["agreement"]["mean"] == found.mean_agreement
    assert other["agreement"]["results"] == [
        {"name": name, "values": values}
        for name, values in zip(LANGUAGES, found.agreement, strict=True)
    ]


def test_another_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = (make_checkpoint(tmp_path / n, seed=i) for i, n in enumerate(("one", "two")))
    argv = ("--model", one, "--dtype", "float32", "--against-model", two)
    shown = run(capsys, *argv, "--json", tmp_path / "scores.json")
    assert shown.startswith("one, float32, against two, float32, on")
    assert cells(shown.split("\n\n")[1])["nDCG@10"] == ["one", "two", "change", *LANGUAGES]
    assert json.loads((tmp_path / "scores.json").read_text())["against"]["model"] == str(two)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--against", "int3"], "--against: expected 'auto' or one of"),
        (["--dtype", "int3", "--against", "int8"], "dtype: expected 'auto' or one of"),
        (["--dtype", "fp32", "--against", "float32"], "m3fast-tiny in float32, found the same"),
        (["--dtype", "fp32", "--against-model", "m3fast-tiny"], "--against: expected another"),
        (["--against-model", "nowhere"], "found 'nowhere'"),
    ],
)
def test_bad_usage(capsys: pytest.CaptureFixture[str], argv: list[str], message: str) -> None:
    capsys.readouterr()
    assert main(["eval", "--device", "cpu", *argv]) == 2
    out, text = capsys.readouterr()
    assert out == "" and text.startswith("m3fast: error: ") and text.count("\n") == 1
    assert message in text
