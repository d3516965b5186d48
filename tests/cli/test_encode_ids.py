"""Ids of `m3fast encode`: exact in every format, all of them or none."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoderuns import IDS, arrow_types, assert_fails, encode, write_jsonl

from m3fast.cli.corpus import Corpus
from m3fast.cli.store import read_ids
from m3fast.engine import engine as engine_module
from m3fast.errors import InputError


@pytest.mark.parametrize("part_size", [4, 100])
def test_ids_come_back_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part_size: int
) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(engine_module, "WINDOW_TEXTS", 4)
    rows = [{"id": name, "text": "a text"} for name in IDS]
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    for name in ("out.npz", "out.parquet"):
        assert encode(source, "-o", tmp_path / name, "--dense", "--part-size", part_size) == 0
    assert read_ids(str(tmp_path / "out.npz")) == IDS
    assert pq.read_table(tmp_path / "out.parquet")["id"].to_pylist() == IDS
    arrays = np.load(tmp_path / "out.npz", allow_pickle=False)
    assert (arrays["ids_values"].dtype, arrays["ids_offsets"].dtype) == (np.uint8, np.int64)
    assert bytes(arrays["ids_values"]) == "".join(IDS).encode()
    assert np.diff(arrays["ids_offsets"]).tolist() == [len(name.encode()) for name in IDS]


def test_ids_of_no_length_make_a_file(tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    source = write_jsonl(tmp_path / "in.jsonl", [{"id": "", "text": "a"}] * 3)
    for name in ("out.npz", "out.parquet"):
        assert encode(source, "-o", tmp_path / name, "--dense") == 0
    assert read_ids(str(tmp_path / "out.npz")) == [""] * 3
    assert pq.read_table(tmp_path / "out.parquet")["id"].to_pylist() == [""] * 3


def test_a_long_id_costs_its_own_length(tmp_path: Path, small_windows: None) -> None:
    sizes: list[int] = []
    for name in ("short", "x" * 20_000):
        rows = [{"id": f"{i}", "text": "a text"} for i in range(100)]
        rows[50]["id"] = name
        source = write_jsonl(tmp_path / "in.jsonl", rows)
        out = tmp_path / f"{len(name)}.npz"
        assert encode(source, "-o", out, "--dense", "--part-size", 16) == 0
        sizes.append(out.stat().st_size)
    assert sizes[1] - sizes[0] == 20_000 - len("short")


MESSAGE = "expected a str or int as id, found "


@pytest.mark.parametrize("value", [None, 1.5, 2.0, True, False, [1], {"a": 1}, "\ud800"])
@pytest.mark.parametrize("place", [0, 17, 39])
def test_ids_are_all_ids_or_left_out(tmp_path: Path, value: object, place: int) -> None:
    rows: list[dict[str, Any]] = [{"id": i, "text": "a text"} for i in range(40)]
    rows[place]["id"] = value
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)))
    corpus = Corpus.check(str(source), "text", None)
    with pytest.warns(RuntimeWarning) as said:
        assert [record.id for record in corpus.with_ids().records()] == [None] * 40
    [message] = [str(warning.message) for warning in said]
    assert message.startswith(f"{source}:{place + 1}: {MESSAGE}{value!r}")
    assert "column 'id' is left out" in message
    with pytest.raises(InputError, match=rf"in\.jsonl:{place + 1}: {MESSAGE}"):
        list(Corpus.check(str(source), "text", "id").records())


@pytest.mark.parametrize(
    ("rows", "place"),
    [
        ([{"id": 1, "text": "a"}, {"text": "b"}], 2),
        ([{"text": "b"}, {"text": "b"}, {"id": 1, "text": "a"}], 1),
    ],
)
def test_ids_that_some_have_are_left_out(tmp_path: Path, rows: list[Any], place: int) -> None:
    source = str(write_jsonl(tmp_path / "in.jsonl", rows))
    with pytest.warns(RuntimeWarning, match=rf"in\.jsonl:{place}: {MESSAGE}none; column 'id'"):
        corpus = Corpus.check(source, "text", None).with_ids()
    assert [record.id for record in corpus.records()] == [None] * len(rows)
    with pytest.raises(InputError, match=rf"in\.jsonl:{place}: expected a column 'id'"):
        list(Corpus.check(source, "text", "id").records())


def test_a_run_goes_on_without_ids(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], small_windows: None
) -> None:
    rows: list[dict[str, Any]] = [{"id": i, "text": f"text {i}"} for i in range(40)]
    out, whole = tmp_path / "out.npz", tmp_path / "whole.npz"
    assert encode(write_jsonl(tmp_path / "in.jsonl", rows), "-o", whole, "--dense") == 0
    rows[20]["id"] = None
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    capsys.readouterr()
    assert encode(source, "-o", out, "--dense", "--part-size", 16) == 0
    said = capsys.readouterr().err
    assert said.startswith(f"m3fast: warning: {source}:21: {MESSAGE}None; column 'id' is left out")
    assert said.count("\n") == 2  # that and the summary
    assert read_ids(str(out)) is None
    np.testing.assert_array_equal(np.load(out)["dense"], np.load(whole)["dense"])
    # Asked for, it is an error.
    named = [source, "-o", tmp_path / "no.npz", "--id-column", "id"]
    assert_fails(capsys, named, f"in.jsonl:21: {MESSAGE}None")


def test_no_ids_is_said_outright(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for value in ("a", None):
        source = write_jsonl(tmp_path / "in.jsonl", [{"id": value, "text": "a"}])
        out = tmp_path / f"{value}.npz"
        assert encode(source, "-o", out, "--dense", "--no-ids") == 0
        assert "warning" not in capsys.readouterr().err
        assert read_ids(str(out)) is None
    with pytest.raises(SystemExit) as stop:
        encode(source, "-o", out, "--no-ids", "--id-column", "id")
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("m3fast: error: argument --id-column: not allowed")


def test_other_ids_are_another_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small_windows: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [{"id": i, "text": "a"} for i in range(40)])
    argv: list[object] = [source, "-o", tmp_path / "out.npz", "--dense", "--part-size", 16]
    with monkeypatch.context() as patched:
        patched.setattr("m3fast.cli.encode._finish", interrupt)
        assert encode(*argv) == 130
    assert_fails(capsys, [*argv, "--no-ids"], "columns was ['text', 'id'] and is ['text', None]")
    assert encode(*argv) == 0
    assert "40 of them by an earlier run" in capsys.readouterr().err
    assert read_ids(str(tmp_path / "out.npz")) == [str(i) for i in range(40)]


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", arrow_types() if importlib.util.find_spec("pyarrow") else [])
def test_ids_of_parquet(tmp_path: Path, recwarn: pytest.WarningsRecorder, name: str) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    kind, values, expected, row = arrow_types()[name]
    table = pa.table({"id": pa.array(values, kind), "text": ["one", "two", "three"]})
    source = str(tmp_path / "in.parquet")
    pq.write_table(table, source)
    corpus = Corpus.check(source, "text", None).with_ids()
    assert [record.id for record in corpus.records()] == (expected or [None] * 3)
    asked = Corpus.check(source, "text", "id").records()
    if row is None:
        assert not recwarn.list
        assert [record.id for record in asked] == expected
        return
    [warning] = recwarn.list
    assert str(warning.message).startswith(f"{source}: row {row}: {MESSAGE}")
    with pytest.raises(InputError, match=rf"in\.parquet: row {row}: {MESSAGE}"):
        list(asked)
