"""`m3fast eval`: end to end on the embedded model, its files, and bad input."""

from __future__ import annotations

import importlib.util
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from checkpoints import make_checkpoint

import m3fast
from m3fast.cli import eval as command
from m3fast.cli import main
from m3fast.evaluate import builtin, cross, evaluate

pytest.importorskip("ir_measures")
LANGUAGES = ["ar", "de", "en", "es", "ru", "th", "tr", "zh"]
MODES = ["dense", "sparse", "colbert", "dense+sparse", "all"]
MEASURES = ["nDCG@10", "Recall@100", "MRR@10", "R@1"]
XQUAD = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "xquad"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if from a wheel: no checkout, so the built-in set."""
    monkeypatch.setattr(command, "_xquad", lambda: None)


@pytest.fixture(scope="module")
def engine() -> m3fast.Engine:
    return m3fast.Engine.from_pretrained(dtype="float32")


def output(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    capsys.readouterr()
    assert main([str(arg) for arg in ("eval", "--dtype", "float32", *argv)]) == 0
    return capsys.readouterr().out


def error(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    capsys.readouterr()
    assert main([str(arg) for arg in ("eval", *argv)]) == 2
    out, text = capsys.readouterr()
    assert out == ""
    assert text.startswith("m3fast: error: ") and text.count("\n") == 1
    return text


@pytest.mark.usefixtures("installed")
def test_table_and_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], engine: m3fast.Engine
) -> None:
    scores, plot = tmp_path / "scores.json", tmp_path / "plot.png"
    argv = ["--json", scores, "--plot", plot, "--weights", "mldr"]
    shown = output(capsys, *argv)
    found = evaluate(engine, builtin(), weights="mldr")

    assert "m3fast-tiny, float32, on the built-in set" in shown
    assert "All documents scored in every mode" in shown
    assert "mldr: 0.2,0.8,0 and 0.15,0.5,0.35" in shown
    blocks = shown.strip().split("\n\n")[1:]
    assert len(blocks) == len(MEASURES)
    for block, measure in zip(blocks, MEASURES, strict=True):
        header, *rows = (line.split() for line in block.split("\n"))
        titles = ["dense", "sparse", "multi-vector", "dense+sparse", "all"]
        assert header == [measure, "queries", "documents", *titles]
        for row, result in zip(rows, found.results, strict=False):
            cells = [f"{100 * result.values[mode][measure]:.1f}" for mode in MODES]
            assert row == [result.name, "24", "24", *cells]
        assert rows[-1] == ["mean", *(f"{100 * found.mean[m][measure]:.1f}" for m in MODES)]
        assert [row[0] for row in rows] == [*LANGUAGES, "mean"]

    report: dict[str, Any] = json.loads(scores.read_text(encoding="utf-8"))
    assert report["model"] == "m3fast-tiny"
    assert report["command"] == shlex.join(
        ["m3fast", "eval", "--dtype", "float32", *map(str, argv)]
    )
    assert (report["dtype"], report["rerank"]) == ("float32", 0)
    assert report["device"] == str(engine.device)
    assert report["max_length"] == engine.max_length
    assert report["weights"] == {
        "name": "mldr",
        "dense+sparse": [0.2, 0.8, 0],
        "all": [0.15, 0.5, 0.35],
    }
    assert report["versions"]["m3fast"] == m3fast.__version__
    assert {"python", "torch", "ir-measures"} <= report["versions"].keys()
    assert report["seconds"] > 0
    assert report["mean"] == found.mean
    for row, result in zip(report["results"], found.results, strict=True):
        assert row == {
            "name": result.name,
            "queries": 24,
            "documents": 24,
            "cut": 0,
            "values": result.values,
        }
    assert plot.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plot.png", "scores.json"]


@pytest.mark.usefixtures("installed")
def test_languages_cross_rerank(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], engine: m3fast.Engine
) -> None:
    scores = tmp_path / "scores.json"
    argv = ("--languages", "zh,de", "--json", scores)
    assert "mean" in output(capsys, *argv)
    assert [r["name"] for r in json.loads(scores.read_text())["results"]] == ["zh", "de"]

    shown = output(capsys, *argv, "--cross", "en", "--rerank", "3")
    assert "Multi-vector and all re-rank dense's best 3" in shown
    report = json.loads(scores.read_text())
    assert report["rerank"] == 3
    by_name = {data.name: data for data in builtin()}
    crossed = cross([by_name[name] for name in ("zh", "de", "en")], "en")
    found = evaluate(engine, crossed, rerank=3)
    assert [r["name"] for r in report["results"]] == ["zh→en", "de→en"]
    assert [r["values"] for r in report["results"]] == [r.values for r in found.results]

    # The target's own language among those asked for is no row.
    output(capsys, "--languages", "en,de", "--cross", "en", "--json", scores)
    assert [r["name"] for r in json.loads(scores.read_text())["results"]] == ["de→en"]


def test_own_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "mine"
    (root / "qrels").mkdir(parents=True)
    (root / "corpus.jsonl").write_text('{"_id": "a", "text": "tea"}\n{"_id": "b", "text": "ice"}')
    (root / "queries.jsonl").write_text('{"_id": "q", "text": "tea"}\n')
    (root / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nq\ta\t1\n")
    shown = output(capsys, root)
    assert f"on {root}" in shown
    assert shown.strip().split("\n")[-1].split()[:3] == ["mine", "1", "2"]
    assert "mean" not in shown  # of one row
    assert "were cut" not in shown
    (root / "queries.jsonl").write_text(f'{{"_id": "q", "text": "{"tea " * 9}"}}\n')
    assert "1 texts were cut at 8 tokens" in output(capsys, root, "--max-length", "8")
    (root / "corpus.jsonl").write_text('{"_id": "a", "text": "tea"}\n?\n')
    assert "corpus.jsonl:2: expected JSON" in error(capsys, root)
    assert "expected a folder for format trec" in error(
        capsys, root / "corpus.jsonl", "--format", "trec"
    )


@pytest.mark.skipif(not XQUAD.is_dir(), reason="needs ../shared/data")
def test_xquad_is_the_default_in_a_checkout() -> None:
    assert command._xquad() == XQUAD
    from m3fast.cli.arguments import parser

    source, datasets = command._datasets(parser().parse_args(["eval"]))
    assert source.startswith("XQuAD")
    assert [data.name for data in datasets] == LANGUAGES
    _, datasets = command._datasets(parser().parse_args(["eval", "--languages", "el,hi"]))
    assert [data.name for data in datasets] == ["el", "hi"]


def test_an_installed_package_does_not_look_beside_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shared/data/xquad").mkdir(parents=True)
    package = tmp_path / "root" / "src" / "m3fast"
    package.mkdir(parents=True)
    monkeypatch.setattr(m3fast, "__file__", str(package / "__init__.py"))
    assert command._xquad() is None
    (tmp_path / "root" / "pyproject.toml").touch()
    assert command._xquad() == tmp_path / "shared/data/xquad"


def test_dense_only_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_checkpoint(tmp_path / "plain", m3_heads=False)
    data = tmp_path / "xquad.de.json"
    data.write_text(
        '{"data": [{"paragraphs": [{"context": "a", "qas": [{"id": "1", "question": "a"}]}]}]}'
    )
    shown = output(capsys, data, "--model", model)
    assert "plain, float32, on" in shown and "a dense head only" in shown
    assert shown.strip().split("\n")[-1].split() == ["de", "1", "1", "100.0"]
    assert "rerank: expected 0" in error(capsys, data, "--model", model, "--rerank", "2")


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--weights", "beir"], "weights: expected one of miracl, mkqa, mldr, equal"),
        (["--weights", "1,2"], "weights: expected three numbers"),
        (["--languages", "de,xx"], "languages: expected some of ar, de"),
        (["--cross", "xx"], "--cross: expected one of ar, de"),
        (["--cross", "en", "--languages", "en"], "expected languages beside en"),
        (["nowhere"], "nowhere: expected a folder or a file"),
        (["--json", "no/where.json"], "--json: expected an existing folder"),
        (["--plot", "plot.pdf"], "--plot: expected .png"),
        (["--plot", "no/where.png"], "--plot: expected an existing folder"),
        (["--pooling", "max"], "pooling: expected"),
    ],
)
def test_bad_usage(capsys: pytest.CaptureFixture[str], argv: list[str], message: str) -> None:
    assert message in error(capsys, *argv)


@pytest.mark.parametrize(
    ("package", "message"),
    [("ir_measures", "pip install 'm3fast[eval]'"), ("matplotlib", "pip install 'm3fast[demo]'")],
)
def test_missing_packages(
    package: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else find(name)
    )
    assert message in error(capsys, "--plot", "x.png")


def test_data_named_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = '{"data": [{"paragraphs": [{"context": "a", "qas": [{"id": "1", "question": "b"}]}]}]}'
    for name in ("a.de.json", "b.de.json"):
        (tmp_path / name).write_text(text)
    assert "expected each language or folder name once, found 'de' again" in error(capsys, tmp_path)


@pytest.mark.parametrize("argv", [["--rerank", "-1"], ["--rerank", "x"], ["--format", "xml"]])
def test_usage_errors_of_argparse(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["eval", *argv])
    assert stop.value.code == 2


@pytest.mark.usefixtures("installed")
def test_progress(capsys: pytest.CaptureFixture[str]) -> None:
    for flag, shown in (("--progress", True), ("--no-progress", False)):
        assert main(["eval", "--languages", "de", flag]) == 0
        assert ("48/48" in capsys.readouterr().err) == shown
