"""Files of texts, read one record at a time: .txt, .jsonl, .parquet, standard input."""

from __future__ import annotations

import importlib.util
import json
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from m3fast.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

STDIN = "-"
ROWS = 1024  # parquet rows held at a time


@dataclass(frozen=True, slots=True)
class Record:
    """One text and its id, None where the input has none."""

    text: str
    id: str | None


@dataclass(frozen=True, slots=True)
class Corpus:
    """A file of texts that can be opened and is of a known kind.

    Attributes:
        path: the file, or `-` for standard input; kind: its suffix.
        text_column, id_column: names in .jsonl and .parquet; id_column None takes `id` where the
            first record has one.
    """

    path: str
    kind: str
    text_column: str = "text"
    id_column: str | None = None

    @classmethod
    def check(cls, path: str, text_column: str, id_column: str | None) -> Corpus:
        """A corpus, with everything checked that can be checked before reading texts.

        Raises:
            InputError: another kind of file, an id column where there are none, or no pyarrow.
            OSError: the file cannot be opened.
        """
        kind = ".txt" if path == STDIN else Path(path).suffix.lower()
        if kind not in (".txt", ".jsonl", ".parquet"):
            raise InputError(f"input: expected .txt, .jsonl, .parquet or -, found {path!r}")
        if kind == ".txt" and id_column is not None:
            raise InputError(f"--id-column: expected .jsonl or .parquet with it, found {path!r}")
        if kind == ".parquet":
            need_pyarrow("input")
        if path != STDIN:
            with open(path, "rb"):
                pass
        return cls(path, kind, text_column, id_column)

    def records(self) -> Iterator[Record]:
        """All records in order.

        Raises:
            InputError: naming file, line or row: not UTF-8, not JSON, no such column, wrong type.
        """
        if self.kind == ".parquet":
            yield from self._parquet()
            return
        with self._open() as file:
            lines = text_lines(self.path, file)
            if self.kind == ".jsonl":
                yield from self._jsonl(lines)
            else:
                yield from (Record(text, None) for _, text in lines)

    def count(self) -> int | None:
        """About how many records there are, for a progress bar; None for standard input."""
        if self.path == STDIN:
            return None
        if self.kind == ".parquet":
            return _open_parquet(self.path).metadata.num_rows
        with open(self.path, "rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))

    @contextmanager
    def _open(self) -> Generator[IO[bytes]]:
        if self.path == STDIN:
            yield sys.stdin.buffer
            return
        with open(self.path, "rb") as file:
            yield file

    def _jsonl(self, lines: Iterable[tuple[str, str]]) -> Iterator[Record]:
        id_column = self.id_column
        first = True
        for where, line in lines:
            if not line.strip():
                continue
            row = json_object(where, line)
            if first and id_column is None and "id" in row:
                id_column = "id"
            first = False
            names = [self.text_column] if id_column is None else [self.text_column, id_column]
            for name in names:
                if name not in row:
                    raise InputError(f"{where}: expected a column {name!r}, found {list(row)}")
            yield _record(where, *(row[name] for name in names))

    def _parquet(self) -> Iterator[Record]:
        file = _open_parquet(self.path)
        names: list[str] = file.schema_arrow.names
        id_column = self.id_column
        if id_column is None and "id" in names:
            id_column = "id"
        columns = [self.text_column] if id_column is None else [self.text_column, id_column]
        for name in columns:
            if name not in names:
                raise InputError(f"{self.path}: expected a column {name!r}, found {names}")
        number = 0
        for batch in _batches(self.path, file, columns):
            for row in zip(*batch, strict=True):
                number += 1
                yield _record(f"{self.path}: row {number}", *row)


def text_lines(path: str, file: Iterable[bytes]) -> Iterator[tuple[str, str]]:
    """(`path:number`, text without its line end) of each line, or InputError naming the line."""
    for number, line in enumerate(file, 1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")  # a byte order mark is no text
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{path}:{number}: expected UTF-8, found {error}") from error
        yield f"{path}:{number}", text.removesuffix("\n").removesuffix("\r")


def json_object(where: str, text: str) -> dict[str, Any]:
    """A JSON object, or InputError naming the place."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: expected JSON, found {error}") from error
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected a JSON object, found {type(row).__name__}")
    return row


def check_text(where: str, text: Any) -> str:
    """A str that is Unicode text, or InputError naming the place."""
    if not isinstance(text, str):
        raise InputError(f"{where}: expected a string as text, found {type(text).__name__}")
    try:
        _ = text.isascii() or text.encode()  # JSON's "\ud800" makes a lone surrogate
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: expected Unicode text, found {error}") from error
    return text


def need_pyarrow(argument: str) -> None:
    """InputError naming the extra to install where pyarrow is missing."""
    if importlib.util.find_spec("pyarrow") is None:
        raise InputError(f"{argument}: .parquet needs pyarrow: pip install 'm3fast[parquet]'")


def _record(where: str, text: Any, *ids: Any) -> Record:
    checked = check_text(where, text)
    if not ids:
        return Record(checked, None)
    if not isinstance(ids[0], str | int) or isinstance(ids[0], bool):
        raise InputError(f"{where}: expected a str or int as id, found {ids[0]!r:.80}")
    return Record(checked, check_text(where, str(ids[0])))


def _batches(path: str, file: Any, columns: list[str]) -> Iterator[list[list[Any]]]:
    """Up to ROWS rows at a time, one list per column."""
    import pyarrow

    try:
        for batch in file.iter_batches(batch_size=ROWS, columns=columns):
            yield [batch.column(name).to_pylist() for name in columns]
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected a sound parquet file, found {error}") from error


def _open_parquet(path: str) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowException as error:
        raise InputError(f"{path}: expected a parquet file, found {error}") from error
