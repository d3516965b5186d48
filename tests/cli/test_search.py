"""`m3fast search` and `m3fast score`: against the scoring functions, and bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import make_checkpoint, small_folder
from encoderuns import assert_refused

import m3fast
from m3fast.cli import main
from m3fast.engine import engine as engine_module
from m3fast.scoring import all_scores, hybrid_scores

TEXTS = [
    "BGE M3 is an embedding model.",
    "BM25 ranks documents by query terms.",
    "Der schnelle braune Fuchs springt.",
    "今天天气很好，我们去公园散步吧。",
    "BGE M3 is an embedding model.",
    "",
    "a text about cats and dogs",
] * 3
QUERIES = ["What is BGE M3?", "cats"]
MODEL = ["--model", str(small_folder()), "--dtype", "float32"]


@pytest.fixture(scope="module")
def engine() -> m3fast.Engine:
    return m3fast.Engine.from_pretrained(small_folder(), dtype="float32")


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(engine_module, "WINDOW_TEXTS", 8)
    path = tmp_path / "corpus.txt"
    path.write_text("".join(f"{text}\n" for text in TEXTS), encoding="utf-8")
    return path


def json_lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        (["--mode", "dense"], (1, 0, 0)),
        (["--mode", "sparse"], (0, 1, 0)),
        (["--mode", "colbert"], (0, 0, 1)),
        ([], (1, 0.3, 1)),
        (["--weights", "0.5,2,0"], (0.5, 2, 0)),
        (["--weights", "mldr"], (0.15, 0.5, 0.35)),
    ],
)
def test_search_ranks_as_the_scores_do(
    corpus: Path,
    engine: m3fast.Engine,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    weights: tuple[float, float, float],
) -> None:
    argv = ["search", *QUERIES, "--corpus", str(corpus), "-k", "5", "--json", *options, *MODEL]
    assert main(argv) == 0
    found = json_lines(capsys)
    scores = all_scores(engine.encode(QUERIES), engine.encode(TEXTS))
    total = hybrid_scores(scores, weights)
    assert [line["query"] for line in found] == [q for q in QUERIES for _ in range(5)]
    assert [line["rank"] for line in found] == [1, 2, 3, 4, 5] * 2
    for i, query in enumerate(QUERIES):
        lines = [line for line in found if line["query"] == query]
        best = np.sort(total[i])[::-1][:5]
        np.testing.assert_allclose([line["score"] for line in lines], best, atol=1e-5)
        for line in lines:
            assert line["text"] == TEXTS[line["row"]]
            assert line["score"] == pytest.approx(total[i, line["row"]], abs=1e-5)
            for mode, score in line["scores"].items():
                assert score == pytest.approx(scores[mode][i, line["row"]], abs=1e-5)
        modes = {mode for mode, w in zip(scores, weights, strict=True) if w}
        assert set(lines[0]["scores"]) == modes


def test_equal_scores_keep_input_order(
    corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["search", "zzz", "--corpus", str(corpus), "--mode", "sparse", "--json", "-k", "99"]
    assert main([*argv, *MODEL]) == 0
    found = json_lines(capsys)
    assert len(found) == len(TEXTS)
    keys = [(-line["score"], line["row"]) for line in found]
    assert keys == sorted(keys)
    assert len({line["score"] for line in found}) < len(TEXTS)


def test_stored_vectors_give_the_same_hits(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = tmp_path / "corpus.npz"
    assert main(["encode", str(corpus), "-o", str(stored), *MODEL]) == 0
    capsys.readouterr()
    search = ["search", *QUERIES, "--corpus", str(corpus), "--json", *MODEL]
    assert main(search) == 0
    expected = json_lines(capsys)
    assert main([*search, "--vectors", str(stored)]) == 0
    for line, wanted in zip(json_lines(capsys), expected, strict=True):
        assert line["score"] == pytest.approx(wanted["score"], abs=1e-3)  # stored in float16


def test_vectors_of_something_else(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored, search = tmp_path / "corpus.npz", ["search", "q", "--corpus", corpus, *MODEL]
    assert main(["encode", str(corpus), "-o", str(stored), "--dense", *MODEL]) == 0
    assert_refused(capsys, [*search, "--vectors", stored], "--vectors", "sparse")
    dense = [*search, "--mode", "dense", "--vectors"]
    model = make_checkpoint(tmp_path / "model", layers=1)
    assert_refused(capsys, [*dense, stored, "--model", model], "--model", str(small_folder()))
    with corpus.open("a") as file:
        file.write("one more\n")
    assert_refused(capsys, [*dense, stored], "--vectors", "only 21 rows")
    corpus.write_text("just one\n")
    assert_refused(capsys, [*dense, stored], "--vectors", "21 rows for 1 texts")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    assert_refused(capsys, [*dense, tmp_path / "other.npz"], "other.npz", "made by m3fast encode")
    assert_refused(capsys, [*dense, corpus], "corpus.txt", "made by m3fast encode")


def test_search_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "corpus.jsonl"
    rows = [{"id": f"key {i}", "text": text} for i, text in enumerate(TEXTS)]
    source.write_text("\n".join(map(json.dumps, rows)))
    assert main(["search", "one", "two", "--corpus", str(source), "-k", "2", *MODEL]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line in ("one", "two")] == ["one", "two"]
    assert lines[1].split() == ["score", "dense", "sparse", "colbert", "id", "text"]
    assert all("key " in lines[i] for i in (2, 3, 7, 8))
    source.write_text("")
    assert main(["search", "one", "--corpus", str(source), *MODEL]) == 0
    assert capsys.readouterr().out == "one\n(no texts)\n\n"


def test_search_shows_ids_or_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "corpus.jsonl"
    search = ["search", "q", "--corpus", str(source), "--mode", "dense", "--json", *MODEL]
    ids: list[Any] = ["a\0", " ", "x" * 20_000, 7]
    for last, flags, expected in (
        (7, [], ["a\0", " ", "x" * 20_000, "7"]),
        (7, ["--no-ids"], None),
        (7, ["--id-column", "id"], ["a\0", " ", "x" * 20_000, "7"]),
        (7.5, [], None),
        (None, [], None),
    ):
        rows = [{"id": i, "text": f"text {i}"[:9]} for i in [*ids[:3], last]]
        source.write_text("\n".join(map(json.dumps, rows)))
        assert main([*search, *flags]) == 0
        out, error = capsys.readouterr()
        lines = sorted(map(json.loads, out.splitlines()), key=lambda line: line["row"])
        assert [line["text"] for line in lines] == [row["text"] for row in rows]
        assert [line.get("id") for line in lines] == (expected or [None] * 4)
        left_out = f"m3fast: warning: {source}:4: expected a str or int as id, found {last!r}; "
        assert error.startswith(left_out) if last != 7 else error == ""
    assert_refused(capsys, [*search, "--id-column", "id"], "corpus.jsonl:4: expected a str or int")


def test_vectors_of_an_earlier_version(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its strings were numpy's, all of one width."""
    stored, old = tmp_path / "corpus.npz", tmp_path / "old.npz"
    assert main(["encode", str(corpus), "-o", str(stored), *MODEL]) == 0
    arrays = dict(np.load(stored))
    arrays["meta"] = np.array(bytes(arrays["meta"]).decode())
    arrays["ids"] = np.array([f"{i}" * i for i in range(len(TEXTS))])
    np.savez(old, **arrays)  # pyright: ignore[reportArgumentType]
    capsys.readouterr()
    search = ["search", *QUERIES, "--corpus", str(corpus), "--json", *MODEL, "--vectors"]
    found: list[list[dict[str, Any]]] = []
    for vectors in (stored, old):
        assert main([*search, str(vectors)]) == 0
        found.append(json_lines(capsys))
    assert len(found[0]) == 20 and found[0] == found[1]


def test_dense_only_model_searches_dense(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", str(make_checkpoint(tmp_path / "model", layers=1, m3_heads=False))]
    search = ["search", "q", "--corpus", str(corpus), *model]
    assert main([*search, "--json"]) == 0
    assert set(json_lines(capsys)[0]["scores"]) == {"dense"}
    assert_refused(capsys, [*search, "--mode", "sparse"], "sparse")
    assert main(["score", "--query", "q", "--passage", "p", "--json", *model]) == 0
    assert set(json_lines(capsys)[0]) == {"query", "passage", "dense"}


@pytest.mark.parametrize("weights", ["1,2", "a,b,c", "0,0,0", "1,-1,1", "nan,1,1", "trec"])
def test_bad_weights(
    corpus: Path, capsys: pytest.CaptureFixture[str], weights: str
) -> None:
    assert_refused(capsys, ["search", "q", "--corpus", corpus, "--weights", weights], "--weights")


def test_bad_search_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(capsys, ["search", "q", "--corpus", tmp_path / "no.txt"], "no.txt")
    (tmp_path / "a.txt").write_bytes(b"\xff\n")
    assert_refused(capsys, ["search", "q", "--corpus", tmp_path / "a.txt"], "a.txt:1")
    assert_refused(capsys, ["search", "\udc80", "--corpus", tmp_path / "a.txt"], "query 1")


def test_score_is_compute_score(capsys: pytest.CaptureFixture[str]) -> None:
    pairs = [(q, p) for q in QUERIES[:1] for p in TEXTS[:3]]
    expected = m3fast.BGEM3FlagModel(str(small_folder()), devices="cpu").compute_score(
        pairs, weights_for_different_modes=[0.4, 0.2, 0.4]
    )
    assert isinstance(expected, dict)
    argv = ["score", "--query", pairs[0][0], "--weights", "0.4,0.2,0.4", *MODEL]
    for _, passage in pairs:
        argv += ["--passage", passage]
    assert main([*argv, "--json"]) == 0
    found = json_lines(capsys)
    assert [(line.pop("query"), line.pop("passage")) for line in found] == pairs
    for i, line in enumerate(found):
        assert line == pytest.approx({key: values[i] for key, values in expected.items()}, abs=1e-5)
    assert main(argv) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == [*expected, "query", "passage"]
    assert [float(row.split()[0]) for row in rows] == pytest.approx(expected["colbert"], abs=1e-4)


def test_score_reads_pairs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("m3fast.cli.score.CHUNK", 2)
    pairs = [("q one", "a"), ("q one", "b"), ("q two", "a"), ("q", ""), ("x", "y")]
    as_json = [json.dumps({"query": q, "passage": p}) for q, p in pairs]
    (tmp_path / "a.jsonl").write_text("\n".join(as_json))
    (tmp_path / "a.tsv").write_text("".join(f"{q}\t{p}\n" for q, p in pairs))
    results: list[list[dict[str, Any]]] = []
    for name in ("a.jsonl", "a.tsv"):
        assert main(["score", "--pairs", str(tmp_path / name), "--json", *MODEL]) == 0
        results.append(json_lines(capsys))
    assert results[0] == results[1]
    assert [(line["query"], line["passage"]) for line in results[0]] == pairs
    (tmp_path / "empty.tsv").touch()
    assert main(["score", "--pairs", str(tmp_path / "empty.tsv"), *MODEL]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("a.tsv", "a\tb\tc\n", "a.tsv:1: expected two columns, found 3"),
        ("a.jsonl", '{"query": "q"}\n', "a.jsonl:1: expected a column 'passage'"),
        ("a.jsonl", '{"query": "q", "passage": null}\n', "a.jsonl:1: expected a string"),
        ("a.csv", "a,b\n", ".jsonl or .tsv"),
        ("none.tsv", None, "none.tsv"),
    ],
)
def test_bad_pairs(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: str | None,
    named: str,
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    assert_refused(capsys, ["score", "--pairs", tmp_path / name], named)


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--query", "q"],
        ["--query", "q", "--query", "q", "--passage", "p"],
        ["--query", "q", "--pairs", "a.tsv"],
    ],
)
def test_bad_pairing(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    assert_refused(capsys, ["score", *argv], "--query")
