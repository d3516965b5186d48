"""`m3fast encode`: layouts, resuming, atomicity, memory, bad input."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import TEXTS, TINY_WIDTH, make_checkpoint

import m3fast
from m3fast.cli import main
from m3fast.cli.corpus import Corpus
from m3fast.cli.parts import Parts
from m3fast.cli.store import pack_strings, read_ids, read_npz, to_arrays, unpack_strings
from m3fast.engine import engine as engine_module
from m3fast.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
CORPUS = [text.replace("\n", " ") for text in TEXTS] * 9  # 108 texts
# What a fixed width would cut, strip or pay for.
IDS = ["a\0", "\0\0", "", " a ", "a", "\n", "\r\n", "\t", "\u0085", "\ufeffa", "🦊", "e\u0301", "é"]
IDS += ["", "\U0010ffff", "\0a\0", "今天", "x" * 20_000, "null", ""]


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "WINDOW_TEXTS", 16)


@pytest.fixture
def corpus(tmp_path: Path, small_windows: None) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("".join(f"{text}\n" for text in CORPUS), encoding="utf-8", newline="\n")
    return path


def encode(*argv: object) -> int:
    return main(["encode", *map(str, argv)])


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n")
    return path


def left_behind(folder: Path, *expected: str) -> set[str]:
    return {path.name for path in folder.iterdir()} - set(expected)


def assert_fails(capsys: pytest.CaptureFixture[str], argv: list[object], *named: str) -> None:
    capsys.readouterr()
    assert encode(*argv) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("m3fast: error: ")
    assert error.count("\n") == 1
    for name in named:
        assert name in error


def test_npz_holds_what_the_engine_gives(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    assert encode(corpus, "-o", out, "--part-size", 32, "--colbert-dtype", "float32") == 0
    found, meta = read_npz(str(out))
    expected = m3fast.Engine.from_pretrained().encode(CORPUS)
    assert found.dense is not None and found.sparse is not None and found.colbert is not None
    assert expected.dense is not None and expected.sparse is not None
    assert expected.colbert is not None
    tolerance = 1e-6 if meta["dtype"] == "float32" else 2e-2
    np.testing.assert_allclose(found.dense, expected.dense, atol=tolerance)
    np.testing.assert_array_equal(found.sparse.indptr, expected.sparse.indptr)
    np.testing.assert_array_equal(found.sparse.indices, expected.sparse.indices)
    np.testing.assert_allclose(found.sparse.values, expected.sparse.values, atol=tolerance)
    np.testing.assert_array_equal(found.colbert.offsets, expected.colbert.offsets)
    np.testing.assert_allclose(found.colbert.values, expected.colbert.values, atol=tolerance)
    np.testing.assert_array_equal(found.n_tokens, expected.n_tokens)
    assert found.sparse.vocab_size == expected.sparse.vocab_size
    assert (meta["texts"], meta["model"]) == (len(CORPUS), "m3fast-tiny")
    assert left_behind(tmp_path, corpus.name, out.name) == set()


def test_parquet_holds_what_npz_holds(tmp_path: Path, small_windows: None) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    rows = [{"id": f"text {i}", "text": text} for i, text in enumerate(CORPUS)]
    source = write_jsonl(tmp_path / "corpus.jsonl", rows)
    for name in ("a.npz", "a.parquet"):
        options = ["--part-size", 32, "--max-length", 16]
        assert encode(source, "-o", tmp_path / name, *options) == 0
    found, meta = read_npz(str(tmp_path / "a.npz"))
    assert found.dense is not None and found.sparse is not None and found.colbert is not None
    table = pq.read_table(tmp_path / "a.parquet")
    assert table["id"].to_pylist() == [row["id"] for row in rows]
    assert table["id"].to_pylist() == read_ids(str(tmp_path / "a.npz"))
    np.testing.assert_array_equal(np.array(table["dense"].to_pylist(), np.float32), found.dense)
    pairs = zip(table["sparse_indices"].to_pylist(), table["sparse_values"].to_pylist(),
                strict=True)  # fmt: skip
    assert [dict(zip(*pair, strict=True)) for pair in pairs] == found.sparse.to_dicts()
    for row, vectors in zip(table["colbert"].to_pylist(), found.colbert, strict=True):
        np.testing.assert_array_equal(np.array(row, np.float16), vectors)
    assert table["n_tokens"].to_pylist() == found.n_tokens.tolist()
    assert table["truncated"].to_pylist() == found.truncated.tolist()
    assert found.truncated.any() and not found.truncated.all()
    assert json.loads(table.schema.metadata[b"m3fast"]) == meta


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


@pytest.mark.parametrize("strings", [IDS, IDS[::-1], ["", ""], []])
def test_strings_are_packed_by_length(strings: list[str]) -> None:
    values, offsets = pack_strings(strings)
    assert (values.dtype, offsets.dtype, len(offsets)) == (np.uint8, np.int64, len(strings) + 1)
    assert unpack_strings(values, offsets) == strings


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


def test_files_of_earlier_versions_are_read(tmp_path: Path) -> None:
    """Their ids had one width, in numpy's strings; so had meta."""
    engine = m3fast.Engine.from_pretrained()
    found = engine.encode(["one", "two"])
    meta = {"model": "m3fast-tiny", "vocab_size": engine.config.vocab_size}
    arrays: dict[str, Any] = to_arrays(found, None, "float32")
    arrays |= {"ids": np.array(["a", "long id"]), "meta": np.array(json.dumps(meta))}
    old = tmp_path / "old.npz"
    np.savez(old, **arrays)
    assert read_ids(str(old)) == ["a", "long id"]
    back, back_meta = read_npz(str(old))
    assert back_meta == meta
    assert back.dense is not None and found.dense is not None
    np.testing.assert_array_equal(back.dense, found.dense)
    assert back.sparse is not None and found.sparse is not None
    assert back.sparse.to_dicts() == found.sparse.to_dicts()


@pytest.mark.parametrize("read", [read_ids, read_npz])
def test_reading_what_is_no_output(tmp_path: Path, read: Callable[[str], Any]) -> None:
    no_utf8 = dict(ids_values=np.array([0xFF], np.uint8), ids_offsets=np.array([0, 1]))
    np.savez(tmp_path / "0.npz", **no_utf8)  # pyright: ignore[reportArgumentType]
    np.savez(tmp_path / "1.npz", x=np.zeros(3))
    np.save(tmp_path / "2.npz", np.zeros(3))
    (tmp_path / "2.npz.npy").rename(tmp_path / "2.npz")
    (tmp_path / "3.npz").write_text("no archive")
    (tmp_path / "4.npz").touch()
    for i in range(5):
        with pytest.raises(InputError, match=rf"{i}\.npz: expected an \.npz made by m3fast encode"):
            read(str(tmp_path / f"{i}.npz"))


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


def test_flags_pick_outputs(corpus: Path, tmp_path: Path) -> None:
    assert encode(corpus, "-o", tmp_path / "a.npz", "--sparse") == 0
    found, _ = read_npz(str(tmp_path / "a.npz"))
    assert found.dense is None and found.colbert is None and found.sparse is not None


def test_lines_are_texts(tmp_path: Path) -> None:
    source = tmp_path / "a.txt"
    source.write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo\x0bthree\n four ")
    corpus = Corpus.check(str(source), "text", None)
    assert [record.text for record in corpus.records()] == ["one", "", "two\x0bthree", " four "]
    assert [record.id for record in corpus.records()] == [None] * 4


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_empty_input_gives_an_empty_output(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "empty.txt").touch()
    out = tmp_path / f"out.{suffix}"
    if suffix == "parquet":
        pq = pytest.importorskip("pyarrow.parquet")
    assert encode(tmp_path / "empty.txt", "-o", out) == 0
    if suffix == "parquet":
        assert pq.read_table(out).num_rows == 0
        assert "colbert" in pq.read_schema(out).names
        return
    found, meta = read_npz(str(out))
    assert found.dense is not None and found.sparse is not None and found.colbert is not None
    assert (len(found), len(found.sparse), len(found.colbert), meta["texts"]) == (0, 0, 0, 0)
    assert found.dense.shape == (0, TINY_WIDTH)
    assert found.colbert.values.shape == (0, TINY_WIDTH)


def test_killed_run_goes_on(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.npz"
    code = (
        "import sys, time\n"
        "import m3fast.engine.engine\n"
        "from m3fast.cli import main\n"
        "from m3fast.cli.parts import Parts\n"
        "m3fast.engine.engine.WINDOW_TEXTS = 16\n"
        "save = Parts.save\n"
        "def save_and_wait(self, arrays):\n"
        "    save(self, arrays)\n"
        "    if len(self.files) == 2: time.sleep(600)\n"
        "Parts.save = save_and_wait\n"
        "main(sys.argv[1:])"
    )
    argv = ["encode", str(corpus), "--part-size", "16", "-o", str(out)]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONSAFEPATH": "1"}
    child = subprocess.Popen([sys.executable, "-c", code, *argv], env=env)
    second = tmp_path / "out.npz.parts" / "000001.npz"
    while not second.exists() and child.poll() is None:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL  # it was still at work
    assert not out.exists()
    assert main(argv) == 0
    assert "108 texts (32 of them by an earlier run)" in capsys.readouterr().err
    assert encode(corpus, "-o", tmp_path / "whole.npz") == 0
    assert out.read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert left_behind(tmp_path, corpus.name, out.name, "whole.npz") == set()


@pytest.fixture
def interrupted(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Path:
    """OUT.parts/ with two parts of 32 texts, as Ctrl-C leaves it."""
    saved = Parts.save

    def save(self: Parts, arrays: dict[str, Any]) -> None:
        if len(self.files) == 2:
            raise KeyboardInterrupt
        saved(self, arrays)

    with monkeypatch.context() as patched:
        patched.setattr(Parts, "save", save)
        assert encode(corpus, "-o", tmp_path / "out.npz", "--part-size", 32) == 130
    assert "64 texts are done" in capsys.readouterr().err
    parts = tmp_path / "out.npz.parts"
    assert {path.name for path in parts.iterdir()} == {
        "000000.npz", "000001.npz", "manifest.json", "lock",
    }  # fmt: skip
    return parts


def test_resumed_run_reuses_parts(
    interrupted: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert encode(corpus, "-o", tmp_path / "out.npz", "--part-size", 32) == 0
    assert "108 texts (64 of them by an earlier run)" in capsys.readouterr().err
    assert encode(corpus, "-o", tmp_path / "whole.npz", "--part-size", 32) == 0
    assert (tmp_path / "out.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert not interrupted.exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--max-length", "32"], "max_length was 8192 and is 32"),
        (["--dense"], "outputs"),
        (["--colbert-dtype", "float32"], "colbert_dtype"),
        (["--dtype", "float16"], "dtype"),
    ],
)
def test_resuming_with_other_options_is_refused(
    interrupted: Path,
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    named: str,
) -> None:
    before = {path.name: path.read_bytes() for path in interrupted.iterdir()}
    assert_fails(capsys, [corpus, "-o", tmp_path / "out.npz", *options], named, "--overwrite")
    assert {path.name: path.read_bytes() for path in interrupted.iterdir()} == before


def test_overwrite_discards_parts_of_another_run(
    interrupted: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    out = tmp_path / "out.npz"
    assert encode(corpus, "-o", out, "--dense", "--overwrite") == 0
    assert "earlier run" not in capsys.readouterr().err
    assert len(read_npz(str(out))[0]) == len(CORPUS)
    assert not interrupted.exists()


def test_resuming_with_another_input_is_refused(
    interrupted: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with corpus.open("a") as file:
        file.write("one more\n")
    assert_fails(capsys, [corpus, "-o", tmp_path / "out.npz"], "input_size")
    assert interrupted.exists()


def test_half_written_part_does_not_count(
    interrupted: Path, corpus: Path, tmp_path: Path
) -> None:
    (interrupted / "unfinished.tmp").write_bytes(b"PK half a part")
    assert encode(corpus, "-o", tmp_path / "out.npz", "--part-size", 32) == 0
    assert len(read_npz(str(tmp_path / "out.npz"))[0]) == len(CORPUS)


def test_second_run_at_the_same_time_is_refused(
    interrupted: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Parts.opened(tmp_path / "out.npz"):
        assert_fails(capsys, [corpus, "-o", tmp_path / "out.npz"], "another run")
    assert (interrupted / "000001.npz").exists()


def test_output_appears_at_once(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out.npz"
    out.write_bytes(b"the old one")

    def full(_: object, file: io.BytesIO, __: object) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("m3fast.cli.encode.write_npz", full)
        assert_fails(capsys, [corpus, "-o", out, "--overwrite"], "No space left on device")
    assert out.read_bytes() == b"the old one"
    assert encode(corpus, "-o", out, "--overwrite") == 0  # its parts were kept
    assert "by an earlier run" in capsys.readouterr().err
    assert len(read_npz(str(out))[0]) == len(CORPUS)


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


def arrow_types() -> dict[str, tuple[Any, list[Any], list[str] | None, int | None]]:
    """Type, values, the ids that they are, and the first row that is none."""
    pa = pytest.importorskip("pyarrow")
    texts, numbers = ["b", "a\0", ""], [7, -1, 1 << 62]
    dictionary = pa.dictionary(pa.int16(), pa.large_string())
    return {
        "string": (pa.string(), texts, texts, None),
        "large_string": (pa.large_string(), texts, texts, None),
        "string_view": (pa.string_view(), texts, texts, None),
        "dictionary": (dictionary, ["b", "a", "b"], ["b", "a", "b"], None),
        "int64": (pa.int64(), numbers, [str(n) for n in numbers], None),
        "uint8": (pa.uint8(), [1, 0, 255], ["1", "0", "255"], None),
        "binary": (pa.binary(), [t.encode() for t in texts], texts, None),
        "large_binary": (pa.large_binary(), ["é".encode()] * 3, ["é"] * 3, None),
        "fixed": (pa.binary(2), [b"ab", b"cd", b"ef"], ["ab", "cd", "ef"], None),
        "no UTF-8": (pa.binary(), [b"a", b"\xff", b"b"], None, 2),
        "string with a null": (pa.string(), ["a", "b", None], None, 3),
        "dictionary with a null": (dictionary, ["a", None, "a"], None, 2),
        "int64 with a null": (pa.int64(), [1, None, 2], None, 2),
        "null": (pa.null(), [None] * 3, None, 1),
        "float64": (pa.float64(), [1.0, 2.0, 3.0], None, 1),
        "bool": (pa.bool_(), [True, False, True], None, 1),
        "list": (pa.list_(pa.int64()), [[1], [2], [3]], None, 1),
        "struct": (pa.struct({"x": pa.int64()}), [{"x": 1}] * 3, None, 1),
        "timestamp": (pa.timestamp("ns"), [1, 2, 3], None, 1),
        "year 15659": (pa.date32(), [5_000_000] * 3, None, 1),
        "uuid": (pa.uuid(), [b"0123456789abcdef"] * 3, None, 1),
    }


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


def test_bad_output(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "old.npz").write_bytes(b"old")
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "in.parquet").write_bytes(b"in")
    for name, named in (
        ("old.npz", "--overwrite"),
        ("folder.npz", "found the folder"),
        ("out.csv", ".npz or .parquet"),
        ("no/such/folder/out.npz", "existing folder"),
        ("/proc/out.npz", "/proc/out.npz"),
    ):
        assert_fails(capsys, [corpus, "-o", tmp_path / name], named)
    pytest.importorskip("pyarrow")
    same: list[object] = [tmp_path / "in.parquet", "-o", tmp_path / "in.parquet", "--overwrite"]
    assert_fails(capsys, same, "another file than the input")
    assert (tmp_path / "old.npz").read_bytes() == b"old"
    expected = (corpus.name, "old.npz", "folder.npz", "in.parquet")
    assert left_behind(tmp_path, *expected) == set()


def test_output_is_checked_before_the_model_is_loaded(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(m3fast.Engine, "from_pretrained", fail)
    assert encode(corpus, "-o", "/proc/out.npz") == 2
    assert encode(tmp_path / "missing.txt", "-o", tmp_path / "out.npz") == 2


def test_missing_pyarrow_names_the_extra(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert_fails(capsys, [corpus, "-o", tmp_path / "out.parquet"], "m3fast[parquet]")
    assert_fails(capsys, [tmp_path / "in.parquet", "-o", tmp_path / "o.npz"], "m3fast[parquet]")


def test_dense_only_model(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_checkpoint(tmp_path / "model", m3_heads=False, layers=1)
    argv: list[object] = [corpus, "-o", tmp_path / "out.npz", "--model", model]
    assert_fails(capsys, [*argv, "--colbert"], "colbert")
    assert encode(*argv) == 0
    assert set(np.load(tmp_path / "out.npz")) == {"n_tokens", "truncated", "dense", "meta"}


def test_progress_bar_knows_the_total(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert encode(corpus, "-o", tmp_path / "out.npz", "--progress") == 0
    assert "108/108" in capsys.readouterr().err
    assert encode(corpus, "-o", tmp_path / "o.npz", "--no-progress") == 0
    assert "/108" not in capsys.readouterr().err


MEMORY = """
import sys
import m3fast.engine.engine
from m3fast.cli import main
m3fast.engine.engine.WINDOW_TEXTS = 50
for output in sys.argv[2:]:
    source = output.rpartition(".")[0] + ".txt"
    options = ["--model", sys.argv[1], "--part-size", "100", "--colbert-dtype", "float32"]
    assert main(["encode", source, "-o", output, *options]) == 0
    # Of this program alone; ru_maxrss begins with what its parent held.
    [peak] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    print(peak.split()[1])
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    """An encoder that costs little and whose output is large: 4 KB a token."""
    pytest.importorskip("pyarrow")
    size = dict(hidden=8, heads=1, layers=1, ffn=8, colbert_dim=1024)
    model = make_checkpoint(tmp_path / "model", **size)
    outputs: list[Path] = []
    for count in (1_000, 3_000):
        lines = "".join(f"a rather short text {i}\n" for i in range(count))
        (tmp_path / f"{count}.txt").write_text(lines)
        outputs += [tmp_path / f"{count}.{suffix}" for suffix in ("npz", "parquet")]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(model), *map(str, outputs)],
        env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    _, small, _, large = (int(line) << 10 for line in done.stdout.split())
    # What one copy of the output in memory would have added.
    copy = outputs[2].stat().st_size - outputs[0].stat().st_size
    assert copy > 50 << 20
    assert large - small < copy / 2, (large - small) >> 20
