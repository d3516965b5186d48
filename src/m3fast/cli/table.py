"""Plain tables for a terminal or a pipe."""

from __future__ import annotations

import shutil
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    Rows = Sequence[Sequence[str]]


def table(header: Sequence[str], rows: Rows, *, texts: int = 0, left: int = 0) -> str:
    """Lines of aligned columns, two spaces apart.

    Args:
        header: names of C columns; rows: C cells each.
        texts: last columns that share what room the others leave, shortened to it.
        left: first columns that are flush left; the rest, but texts, are flush right.
    """
    fixed = len(header) - texts
    lines = [list(header), *(list(row) for row in rows)]
    used = sum(max(width(line[i]) for line in lines) + 2 for i in range(fixed))
    room = max(16, (terminal_columns() - used) // max(1, texts) - 2)
    for line in lines:
        line[fixed:] = [fit(text, room) for text in line[fixed:]]
    widths = [max(width(line[i]) for line in lines) for i in range(len(header))]

    def cell(i: int, text: str) -> str:
        space = " " * (widths[i] - width(text))
        return text + space if i < left or i >= fixed else space + text

    return "\n".join("  ".join(map(cell, range(len(line)), line)).rstrip() for line in lines)


def width(text: str) -> int:
    """Columns a text takes on a terminal: wide characters two, combining marks none."""
    return len(text) if text.isascii() else sum(map(_character_width, text))


def fit(text: str, columns: int) -> str:
    """One printable line of at most that many columns."""
    # A text from a file must not move the cursor or colour the terminal.
    start = "".join(c if c.isprintable() else " " for c in text[: 4 * columns])
    line = " ".join(start.split())
    if width(line) <= columns and len(text) <= 4 * columns:
        return line
    while line and width(line) >= columns:
        line = line[:-1]
    return f"{line}…"


def terminal_columns() -> int:
    """Width of the terminal, 100 where there is none."""
    return max(40, shutil.get_terminal_size((100, 24)).columns)


def _character_width(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
