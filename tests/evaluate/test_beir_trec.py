"""Folders in BEIR's and TREC's formats, good and broken."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from datasetfiles import only, write

from m3fast import InputError
from m3fast.evaluate import load_dataset


def jsonl(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    root = tmp_path / "scifact"
    write(
        root / "corpus.jsonl",
        jsonl(
            {"_id": "d1", "title": "Bees", "text": "make honey."},
            {"_id": "d2", "title": "", "text": "Salt melts ice."},
            {"_id": 3, "text": "Tea."},
        ),
    )
    write(
        root / "queries.jsonl",
        jsonl(
            {"_id": "q2", "text": "ice?"},
            {"_id": "q1", "text": "honey?", "metadata": {}},
            {"_id": "unjudged", "text": "?"},
        ),
    )
    write(
        root / "qrels/test.tsv",
        "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\t3\t0\nq2\td2\t1\n",
    )
    return root


@pytest.fixture
def trec(tmp_path: Path) -> Path:
    root = tmp_path / "sw"
    rows = jsonl(
        {"docid": "d1", "title": "Bees", "text": "make honey."}, {"id": "d2", "contents": "Salt."}
    )
    write(root / "docs-0.jsonl.gz", rows)
    write(root / "docs-1.tsv", "d3\tTea.\n")
    write(root / "topics.dev.tsv", "7\thoney?\n8\tice?\n")
    write(root / "topics.train.tsv", "9\ttea?\n")
    write(root / "qrels.dev.tsv", "7 Q0 d1 1\n7\tQ0\td3\t-2\n8 0 d2 3\n")
    write(root / "qrels.train.tsv", "9 Q0 d3 1\n")
    return root


@pytest.mark.parametrize("format", ["auto", "beir"])
def test_beir(beir: Path, format: str) -> None:
    found = only(load_dataset(beir, format))
    assert found.name == "scifact"
    assert found.documents.ids == ("d1", "d2", "3")
    assert found.documents.texts == ("Bees make honey.", "Salt melts ice.", "Tea.")
    assert found.queries.ids == ("q2", "q1")  # judged ones, in the file's order
    assert found.queries.texts == ("ice?", "honey?")
    assert found.qrels == {"q1": {"d1": 2, "3": 0}, "q2": {"d2": 1}}


def test_beir_splits(beir: Path) -> None:
    write(beir / "qrels/dev.tsv", "query-id\tcorpus-id\tscore\nunjudged\t3\t1\n")
    assert only(load_dataset(beir)).queries.ids == ("q2", "q1")
    assert only(load_dataset(beir, split="dev")).queries.ids == ("unjudged",)
    with pytest.raises(InputError, match=r"qrels: expected train\.tsv, found dev, test"):
        load_dataset(beir, split="train")
    (beir / "qrels/test.tsv").unlink()
    assert only(load_dataset(beir)).queries.ids == ("unjudged",)  # the only one


@pytest.mark.parametrize("format", ["auto", "trec"])
def test_trec(trec: Path, format: str) -> None:
    found = only(load_dataset(trec, format, split="dev"))
    assert found.name == "sw"
    assert found.documents.ids == ("d1", "d2", "d3")
    assert found.documents.texts == ("Bees make honey.", "Salt.", "Tea.")
    assert found.queries.ids == ("7", "8")
    assert found.qrels == {"7": {"d1": 1, "d3": 0}, "8": {"d2": 3}}
    assert only(load_dataset(trec, split="train")).qrels == {"9": {"d3": 1}}
    with pytest.raises(InputError, match=r"expected one topics\*.*found topics\.dev.*--split"):
        load_dataset(trec)


def test_judgements_of_what_is_not_there(beir: Path) -> None:
    with open(beir / "qrels/test.tsv", "a", encoding="utf-8") as file:
        file.write("q1\tlost\t1\nnobody\td1\t1\n")
    with pytest.warns(RuntimeWarning) as said:
        found = only(load_dataset(beir))
    messages = [str(warning.message) for warning in said]
    assert len(messages) == 2
    assert any("1 of 3 queries are not in" in text for text in messages)
    assert any("1 of 4 documents are not in" in text for text in messages)
    assert found.qrels["q1"] == {"d1": 2, "3": 0, "lost": 1}


BROKEN = [
    # file, its text, what the error says after the file's name
    ("corpus.jsonl", '{"_id": "d1", "text": "a"}\nnonsense\n', ":2: expected JSON"),
    ("corpus.jsonl", '{"_id": "d1"}\n', ":1: expected 'text', a str, found keys"),
    ("corpus.jsonl", '{"text": "a"}\n', ":1: expected _id or id or docid"),
    ("corpus.jsonl", '{"_id": "d1", "text": 5}\n', ":1: expected 'text', a str, found int"),
    ("corpus.jsonl", '{"_id": "d1", "title": [1], "text": ""}', ":1: expected 'title', a str"),
    ("corpus.jsonl", '["d1"]\n', ":1: expected a JSON object, found list"),
    ("corpus.jsonl", '{"_id": "d1", "text": "\\ud800"}\n', ":1: expected Unicode text"),
    ("corpus.jsonl", 2 * '{"_id": "d1", "text": "a"}\n', ":2: expected each id once"),
    ("queries.jsonl", "\n\n{\n", ":3: expected JSON"),
    ("qrels/test.tsv", "q1\td1\t1\n", ":1: expected a header"),
    ("qrels/test.tsv", "a\tb\tscore\nq1\td1\n", ":2: expected 3 columns"),
    ("qrels/test.tsv", "a\tb\tscore\nq1\td1\tgood\n", ":2: expected an integer at the end"),
    ("qrels/test.tsv", "a\tb\tscore\n", ": expected judgements, found none"),
    ("qrels/test.tsv", "a\tb\tscore\nnobody\td1\t1\n", ": expected ids of queries"),
    ("qrels/test.tsv", "a\tb\tscore\nq1\tnothing\t1\n", ": expected ids of documents"),
]


@pytest.mark.parametrize(("name", "text", "message"), BROKEN)
def test_broken_beir(beir: Path, name: str, text: str, message: str) -> None:
    write(beir / name, text)
    with pytest.raises(InputError, match=re.escape(f"{beir / name}{message}")):
        load_dataset(beir)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("docs-1.tsv", "d3 Tea.\n", ":1: expected id and text with a tab between"),
        ("docs-1.tsv", "d3\tTea.\nd1\tagain\n", ":2: expected each id once, found 'd1'"),
        ("topics.dev.tsv", "7\ta\tb\n", ":1: expected id and text"),
        ("qrels.dev.tsv", "7 Q0 d1 1\n\n7 d1 1\n", ":3: expected 4 columns"),
        ("qrels.dev.tsv", "7 Q0 d1 x\n", ":1: expected an integer"),
    ],
)
def test_broken_trec(trec: Path, name: str, text: str, message: str) -> None:
    write(trec / name, text)
    with pytest.raises(InputError, match=re.escape(f"{trec / name}{message}")):
        load_dataset(trec, split="dev")


def test_broken_bytes(trec: Path) -> None:
    (trec / "docs-1.tsv").write_bytes(b"d3\ttea\nd4\t\xff\n")
    with pytest.raises(InputError, match=r"docs-1\.tsv:2: expected UTF-8"):
        load_dataset(trec, split="dev")
    (trec / "docs-0.jsonl.gz").write_bytes(b"no gzip at all")
    with pytest.raises(InputError, match=r"docs-0\.jsonl\.gz: expected a sound \.gz"):
        load_dataset(trec, split="dev")


@pytest.mark.parametrize("missing", ["corpus.jsonl", "queries.jsonl"])
def test_missing_beir_file(beir: Path, missing: str) -> None:
    (beir / missing).unlink()
    with pytest.raises(InputError, match=f"expected {missing}"):
        load_dataset(beir)


def test_missing_trec_corpus(trec: Path) -> None:
    for file in trec.glob("docs*"):
        file.unlink()
    with pytest.raises(InputError, match=r"expected corpus\* or collection\* or docs\*"):
        load_dataset(trec, split="dev")
