"""Reads lines and JSON of files, .gz too; an error names file and line."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import TYPE_CHECKING, Any

from m3fast.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """(`path:number`, text) of each line that is not blank.

    Raises:
        InputError: not UTF-8, or a broken .gz.
        OSError: the file cannot be read.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rb") as file:
            for number, line in enumerate(file, 1):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                if text.strip():
                    yield f"{path}:{number}", text
    except UnicodeDecodeError as error:
        raise InputError(f"{path}:{number}: expected UTF-8, found {error}") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: expected a sound .gz file, found {error}") from error


def parse(where: str, text: str) -> Any:
    """A JSON value, or InputError naming the place."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: expected JSON, found {error}") from error


def field(where: str, row: Any, name: str, kind: type) -> Any:
    """row[name] of that type, or InputError naming the place; a str must be Unicode text."""
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected a JSON object, found {type(row).__name__}")
    value = row.get(name)
    if not isinstance(value, kind):
        found = f"{type(value).__name__}" if name in row else f"keys {list(row)}"
        raise InputError(f"{where}: expected {name!r}, a {kind.__name__}, found {found}")
    if isinstance(value, str):
        unicode_text(where, value)
    return value


def unicode_text(where: str, text: str) -> str:
    """The text, or InputError where it holds a lone surrogate, as JSON's "\\ud800" makes one."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: expected Unicode text, found {error}") from error
    return text
