"""Files of texts, read one record at a time: .txt, .jsonl, .parquet, standard input."""

from __future__ import annotations

import importlib.util
import json
import sys
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from m3fast.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence

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
        text_column, id_column: names in .jsonl and .parquet; id_column None for no ids.
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

    def with_ids(self) -> Corpus:
        """This corpus with the ids of its column `id`, if every record has a str or int there.

        Reads the file once: an output has ids of all its texts or of none. Warns where some
        records have ids and some do not.

        Raises:
            InputError: naming file, line or row: not UTF-8, not JSON, no sound parquet.
        """
        found, wrong = False, ""
        for where, ids in self._found_ids():
            found = found or bool(ids)
            wrong = wrong or _wrong_id(where, ids)
            if found and wrong:
                left_out = "column 'id' is left out (see --id-column and --no-ids)"
                warnings.warn(f"{wrong}; {left_out}", RuntimeWarning, stacklevel=2)
                return self
        return replace(self, id_column="id") if found else self

    def records(self) -> Iterator[Record]:
        """All records in order.

        Raises:
            InputError: naming file, line or row: not UTF-8, not JSON, no such column, wrong type.
        """
        if self.kind == ".txt":
            yield from (Record(text, None) for _, text in self._lines())
            return
        names = [self.text_column] if self.id_column is None else [self.text_column, self.id_column]
        rows = self._parquet(names) if self.kind == ".parquet" else self._jsonl(names)
        for where, values in rows:
            yield _record(where, *values)

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

    def _lines(self) -> Iterator[tuple[str, str]]:
        with self._open() as file:
            yield from text_lines(self.path, file)

    def _objects(self) -> Iterator[tuple[str, dict[str, Any]]]:
        return ((where, json_object(where, line)) for where, line in self._lines() if line.strip())

    def _found_ids(self) -> Iterator[tuple[str, list[Any]]]:
        """(place, [the value of `id`], or [] where there is none) of each record."""
        if self.kind == ".jsonl":
            for where, row in self._objects():
                yield where, [row["id"]] if "id" in row else []
        elif self.kind == ".parquet" and "id" in _open_parquet(self.path).schema_arrow.names:
            yield from self._parquet(["id"])

    def _jsonl(self, names: list[str]) -> Iterator[tuple[str, list[Any]]]:
        """(place, values of those columns) of each record."""
        for where, row in self._objects():
            for name in names:
                if name not in row:
                    raise InputError(f"{where}: expected a column {name!r}, found {list(row)}")
            yield where, [row[name] for name in names]

    def _parquet(self, names: list[str]) -> Iterator[tuple[str, list[Any]]]:
        """As `_jsonl`."""
        file = _open_parquet(self.path)
        found: list[str] = file.schema_arrow.names
        for name in names:
            if name not in found:
                raise InputError(f"{self.path}: expected a column {name!r}, found {found}")
            if (count := found.count(name)) > 1:
                raise InputError(f"{self.path}: expected one column {name!r}, found {count}")
        number = 0
        for batch in _batches(self.path, file, names):
            for row in zip(*batch, strict=True):
                number += 1
                yield f"{self.path}: row {number}", list(row)


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
    if wrong := _wrong_id(where, ids):
        raise InputError(wrong)
    # Parquet files of some writers do not say that their bytes are text.
    return Record(checked, ids[0].decode() if isinstance(ids[0], bytes) else str(ids[0]))


def _wrong_id(where: str, ids: Sequence[Any]) -> str:
    """What is wrong with the id of a record, [] for none; empty if nothing is."""
    expected = f"{where}: expected a str or int as id, found"
    if not ids:
        return f"{expected} none"
    value = ids[0]
    try:
        if isinstance(value, str):
            value.encode()  # JSON's "\ud800" makes a lone surrogate
        elif isinstance(value, bytes):
            value.decode()
        elif not isinstance(value, int) or isinstance(value, bool):
            return f"{expected} {value!r:.80}"
    except UnicodeError:
        return f"{expected} {value!r:.80}, which is no Unicode text"
    return ""


def _batches(path: str, file: Any, columns: list[str]) -> Iterator[list[list[Any]]]:
    """Up to ROWS rows at a time, one list per column."""
    import pyarrow

    try:
        for batch in file.iter_batches(batch_size=ROWS, columns=columns):
            yield [_values(batch.column(name)) for name in columns]
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected a sound parquet file, found {error}") from error


def _values(column: Any) -> list[Any]:
    """Values of an Arrow column, or its type for each where they are times or nested."""
    import pyarrow.types

    # Neither text nor ids, and not all that Arrow can hold is a time in Python.
    if pyarrow.types.is_temporal(column.type) or pyarrow.types.is_nested(column.type):
        return [column.type] * len(column)
    return column.to_pylist()


def _open_parquet(path: str) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowException as error:
        raise InputError(f"{path}: expected a parquet file, found {error}") from error
