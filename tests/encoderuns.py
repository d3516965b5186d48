"""Runs of `m3fast encode` in tests: a corpus, and what they leave and say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoints import TEXTS, small_folder

from m3fast.cli import main

CORPUS = [text.replace("\n", " ") for text in TEXTS] * 9  # 108 texts
# What a fixed width would cut, strip or pay for.
IDS = ["a\0", "\0\0", "", " a ", "a", "\n", "\r\n", "\t", "\u0085", "\ufeffa", "🦊", "e\u0301", "é"]
IDS += ["", "\U0010ffff", "\0a\0", "今天", "x" * 20_000, "null", ""]


def encode(*argv: object) -> int:
    return main(encode_argv(*argv))


def encode_argv(*argv: object) -> list[str]:
    """`m3fast encode` with a small model, or with the --model that is given."""
    return ["encode", "--model", str(small_folder()), *map(str, argv)]


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n")
    return path


def left_behind(folder: Path, *expected: str) -> set[str]:
    return {path.name for path in folder.iterdir()} - set(expected)


def assert_refused(capsys: pytest.CaptureFixture[str], argv: list[object], *named: str) -> None:
    """One line on stderr that names all of this, and nothing on stdout."""
    capsys.readouterr()
    assert main([str(arg) for arg in argv]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("m3fast: error: ")
    assert error.count("\n") == 1
    for name in named:
        assert name in error


def assert_fails(capsys: pytest.CaptureFixture[str], argv: list[object], *named: str) -> None:
    """`assert_refused` of `m3fast encode`."""
    assert_refused(capsys, [*encode_argv(*argv)], *named)


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
