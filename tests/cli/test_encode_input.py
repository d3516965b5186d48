"""Input of `m3fast encode`: its formats, and errors that name file and line."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from encoderuns import CORPUS, arrow_types, assert_fails, encode, left_behind

from m3fast.cli.corpus import Corpus
from m3fast.cli.store import read_ids


def test_parquet_and_stdin_as_input(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    table = pa.table({"body": CORPUS, "key": list(range(len(CORPUS)))})
    pq.write_table(table, tmp_path / "corpus.parquet")
    columns = ["--text-column", "body", "--id-column", "key"]
    assert encode(tmp_path / "corpus.parquet", "-o", tmp_path / "a.npz", *columns) == 0
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(corpus.read_bytes())))
    assert encode("-", "-o", tmp_path / "b.npz") == 0
    a, b = np.load(tmp_path / "a.npz"), np.load(tmp_path / "b.npz")
    assert read_ids(str(tmp_path / "a.npz")) == [str(i) for i in range(len(CORPUS))]
    assert read_ids(str(tmp_path / "b.npz")) is None
    assert set(a) - set(b) == {"ids_values", "ids_offsets"}
    for name in b:
        np.testing.assert_array_equal(a[name], b[name])


def test_lines_are_texts(tmp_path: Path) -> None:
    source = tmp_path / "a.txt"
    source.write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo\x0bthree\n four ")
    corpus = Corpus.check(str(source), "text", None)
    assert [record.text for record in corpus.records()] == ["one", "", "two\x0bthree", " four "]
    assert [record.id for record in corpus.records()] == [None] * 4


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("missing.txt", None, "No such file"),
        ("a.csv", b"text\nhello\n", ".jsonl"),
        ("latin.txt", b"good\ncaf\xe9\n", "latin.txt:2: expected UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "a.jsonl:2: expected JSON"),
        ("a.jsonl", b'{"text": "a"}\n\n["b"]\n', "a.jsonl:3: expected a JSON object, found list"),
        ("a.jsonl", b'{"text": "a"}\n{"txt": "b"}\n', "a.jsonl:2: expected a column 'text'"),
        ("a.jsonl", b'{"text": 7}\n', "a.jsonl:1: expected a string as text, found int"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "a.jsonl:1: expected Unicode text"),
        ("a.jsonl", b'{"text": "a", "id": 1}\n{"id": 2}\n', "a.jsonl:2: expected a column 'text'"),
        ("a.jsonl", b"[" * 100_000 + b"\n", "a.jsonl:1: expected JSON"),
        ("a.parquet", b"not parquet at all", "a.parquet: expected a parquet file"),
    ],
)
def test_bad_input(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: bytes | None,
    named: str,
) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert_fails(capsys, [tmp_path / name, "-o", tmp_path / "out.npz"], named)
    assert left_behind(tmp_path, name) == set()


def test_bad_line_after_many_parts_leaves_nothing(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with corpus.open("ab") as file:
        file.write(b"\xff\n")
    argv: list[object] = [corpus, "-o", tmp_path / "out.npz", "--part-size", 16]
    assert_fails(capsys, argv, "corpus.txt:109: expected UTF-8")
    assert left_behind(tmp_path, corpus.name) == set()


def test_bad_parquet_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    source = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a", None], "n": [1, 2]}), source)
    out = tmp_path / "out.npz"
    assert_fails(capsys, [source, "-o", out], "row 2: expected a string as text, found NoneType")
    assert_fails(capsys, [source, "-o", out, "--text-column", "x"], "column 'x'", "'n'")
    assert_fails(capsys, [source, "-o", out, "--id-column", "y"], "column 'y'")
    assert left_behind(tmp_path, source.name) == set()


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary"])
def test_texts_of_parquet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    texts = ["one", "今天", "one", ""]
    source = tmp_path / "in.parquet"
    for values in (texts, [*texts, None]):
        pq.write_table(pa.table({"text": pa.array(values, arrow_types()[kind][0])}), source)
        corpus = Corpus.check(str(source), "text", None)
        if None not in values:
            assert [record.text for record in corpus.records()] == texts
            continue
        out = tmp_path / "out.npz"
        assert_fails(capsys, [source, "-o", out], "row 5: expected a string as text, found None")


def test_numbers_are_no_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    out, source = tmp_path / "out.npz", tmp_path / "in.parquet"
    for values, row, found in (([7, None], 1, "int"), ([None, 7], 1, "None"), ([b"a"], 1, "bytes")):
        pq.write_table(pa.table({"text": values}), source)
        named = f"row {row}: expected a string as text, found {found}"
        assert_fails(capsys, [source, "-o", out], named)
    pq.write_table(pa.table([["a"], ["b"]], names=["text", "text"]), source)
    assert_fails(capsys, [source, "-o", out], "expected one column 'text', found 2")
