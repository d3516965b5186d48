"""Datasets: which format a path holds, SQuAD's files, languages, queries across languages."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from datasetfiles import only, write

from m3fast import InputError
from m3fast.evaluate import Dataset, Texts, builtin, cross, load_dataset, pick

ROOT = Path(__file__).resolve().parents[2]
XQUAD = ROOT.parent / "shared" / "data" / "xquad"


def squad(*paragraphs: tuple[str, list[tuple[str, str]]], **extra: Any) -> str:
    """Each paragraph an article of its own: context, (id, question) pairs."""
    return json.dumps(
        {
            "data": [
                {"paragraphs": [{"context": context, "qas": [
                    {"id": i, "question": q, "answers": [], **extra} for i, q in qas]}]}
                for context, qas in paragraphs
            ]
        }
    )  # fmt: skip


def test_nothing_known(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("?")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(InputError, match=r"expected a folder in BEIR's format"):
            load_dataset(path)
    with pytest.raises(InputError, match="found nothing there"):
        load_dataset(tmp_path / "nowhere")
    with pytest.raises(InputError, match="format: expected one of auto, beir"):
        load_dataset(tmp_path, "xml")
    with pytest.raises(InputError, match=r"expected \.json files"):
        load_dataset(tmp_path, "squad")
    with pytest.raises(InputError, match="expected a folder for format beir"):
        load_dataset(tmp_path / "notes.txt", "beir")


@pytest.mark.parametrize(
    ("name", "language"),
    [
        ("xquad.de.json", "de"),
        ("test-context-zh-question-zh.json", "zh"),
        ("x.zh-TW.json", "zh-TW"),
        ("x.de.json.gz", "de"),
        ("dev.json", "dev"),
        ("train-v1.1.json", "train-v1.1"),
    ],
)
def test_squad(tmp_path: Path, name: str, language: str) -> None:
    text = squad(("Bees.", [("a", "What flies?"), ("b", "Who?")]), ("Tea.", [("c", "What?")]),
                 ("Bees.", [("d", "Again?")]))  # fmt: skip
    found = only(load_dataset(write(tmp_path / name, text)))
    assert found.name == language
    assert found.documents.texts == ("Bees.", "Tea.")
    assert found.queries.texts == ("What flies?", "Who?", "What?", "Again?")
    bees, tea = found.documents.ids
    assert found.qrels == {"a": {bees: 1}, "b": {bees: 1}, "c": {tea: 1}, "d": {bees: 1}}


def test_squad_impossible(tmp_path: Path) -> None:
    text = squad(("Bees.", [("a", "What?")]), is_impossible=True)
    with pytest.raises(InputError, match="expected questions with answers"):
        load_dataset(write(tmp_path / "a.json", text))
    text = squad(("Bees.", [("a", "What?")]), is_impossible=False)
    assert only(load_dataset(write(tmp_path / "a.json", text))).queries.ids == ("a",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", ": expected JSON"),
        ("[]", ": expected a JSON object, found list"),
        ("{}", ": expected 'data', a list"),
        ('{"data": [{}]}', ": data[0]: expected 'paragraphs', a list"),
        ('{"data": [{"paragraphs": [5]}]}', ": data[0].paragraphs[0]: expected a JSON object"),
        (squad(("a", [("x", "one?")]), ("b", [("x", "two?")])),
         ": data[1].paragraphs[0].qas[0]: expected one question per id"),
        (squad(("a", [("x", 5)])), ": data[0].paragraphs[0].qas[0]: expected 'question', a str"),  # pyright: ignore
    ],
)  # fmt: skip
def test_broken_squad(tmp_path: Path, text: str, message: str) -> None:
    file = write(tmp_path / "xquad.de.json", text)
    with pytest.raises(InputError, match=re.escape(f"{file}{message}")):
        load_dataset(file)


def test_folder_of_languages_and_cross(tmp_path: Path) -> None:
    # In English two paragraphs are one, and one question is missing.
    write(tmp_path / "x.en.json", squad(("A", [("1", "a?")]), ("A", [("2", "b?")]), ("C", [])))
    write(tmp_path / "x.de.json",
          squad(("X", [("1", "x?")]), ("Y", [("2", "y?")]), ("Z", [("3", "z?")])))  # fmt: skip
    every = load_dataset(tmp_path)
    assert [data.name for data in every] == ["de", "en"]
    german, english = every
    found = only(cross(every, "en"))
    assert found.name == "de→en"
    assert found.documents is english.documents
    assert found.queries.texts == ("x?", "y?")
    assert found.qrels == {"1": english.qrels["1"], "2": english.qrels["1"]}
    assert only(cross(every, "de")).queries.texts == ("a?", "b?")
    assert pick(every, ["en", "de"]) == [english, german]
    assert pick(every, ["en", "en"]) == [english]
    with pytest.raises(InputError, match="languages: expected some of de, en, found 'fr'"):
        pick(every, ["de", "fr"])
    with pytest.raises(InputError, match="cross: expected one of de, en, found 'fr'"):
        cross(every, "fr")
    with pytest.raises(InputError, match="expected languages beside en"):
        cross([english], "en")
    other = Dataset("fr", Texts(("9",), ("?",)), Texts(("d",), ("D",)), {"9": {"d": 1}})
    with pytest.raises(InputError, match="expected fr to share ids of queries with en"):
        cross([english, other], "en")


def test_checked_when_made() -> None:
    one = Texts(("a",), ("A",))
    with pytest.raises(InputError, match="ids: expected one per text and none twice"):
        Texts(("a", "a"), ("A", "B"))
    with pytest.raises(InputError, match="x: expected a judgement of query 'a'"):
        Dataset("x", one, one, {})
    with pytest.raises(InputError, match="x: expected judged queries and documents"):
        Dataset("x", Texts((), ()), one, {})


def test_builtin() -> None:
    every = builtin()
    assert [data.name for data in every] == ["ar", "de", "en", "es", "ru", "th", "tr", "zh"]
    for data in every:
        assert len(data.queries) == len(data.documents) >= 24
        assert len(set(data.documents.texts)) == len(data.documents)
        assert len(set(data.queries.texts)) == len(data.queries)
        assert all(text == text.strip() for text in data.queries.texts + data.documents.texts)
        assert data.queries.ids == every[0].queries.ids
    assert len(cross(every, "en")) == 7


@pytest.mark.skipif(not XQUAD.is_dir(), reason="needs ../shared/data")
def test_xquad() -> None:
    every = load_dataset(XQUAD)
    assert len(every) == 12
    for data in every:
        assert (len(data.queries), len(data.documents)) == (1190, 240), data.name
        assert all(len(relevant) == 1 for relevant in data.qrels.values())
    assert all(len(data.queries) == 1190 for data in cross(every, "en"))
