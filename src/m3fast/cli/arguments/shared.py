"""Arguments that several commands share."""

from __future__ import annotations

import argparse

INPUT = """\
input (IN, --corpus):
  .txt      one text per line, empty lines count
  .jsonl    one JSON object per line, blank lines do not count
  .parquet  a column of strings (needs m3fast[parquet])
  -         as .txt, from standard input
Text is UTF-8. Names of columns: --text-column, --id-column. Without --id-column, ids are taken from
a column id if all of it are strings or integers; else it is left out, with a warning."""


def add_model(sub: argparse.ArgumentParser) -> None:
    """Add the model, its device, dtype and length."""
    group = sub.add_argument_group("model")
    group.add_argument(
        "--model",
        default="m3fast-tiny",
        help="m3fast-tiny, a folder or a hub id such as BAAI/bge-m3 (default: %(default)s)",
    )
    group.add_argument("--device", default="auto", help="auto, cpu or cuda[:n]")
    group.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, float16 or int8")
    group.add_argument(
        "--max-length", type=int, metavar="N", help="most tokens per text (default: the model's)"
    )


def add_columns(sub: argparse.ArgumentParser) -> None:
    """Add the columns of a file of texts."""
    group = sub.add_argument_group("columns")
    group.add_argument(
        "--text-column", default="text", metavar="NAME", help="of texts (default: %(default)s)"
    )
    ids = group.add_mutually_exclusive_group()
    ids.add_argument(
        "--id-column",
        metavar="NAME",
        help="of ids, str or int (default: id, where every record has one)",
    )
    ids.add_argument("--no-ids", action="store_true", help="leave ids out")


def add_progress(sub: argparse.ArgumentParser) -> None:
    """Add --progress."""
    sub.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        help="show a progress bar (default: on a terminal)",
    )


def add_json(sub: argparse.ArgumentParser) -> None:
    """Add --json."""
    sub.add_argument("--json", action="store_true", help="JSON instead of a table")


def positive(text: str) -> int:
    """The type of an argument from 1 on."""
    value = int(text)  # argparse turns a ValueError into its own error line
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, found {value}")
    return value
