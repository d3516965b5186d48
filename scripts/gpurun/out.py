"""The folder of results: eight files of bounded size, written to as things happen."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# All the files there are.
STEPS, TESTS, FAILURES, LOG = "steps.jsonl", "tests.jsonl", "failures.txt", "log.txt"
RECORDS, KERNELS, TUNED, TABLE = "records.jsonl", "kernels.jsonl", "tuned.json", "table.txt"
FILES = (STEPS, TESTS, FAILURES, LOG, RECORDS, KERNELS, TUNED, TABLE)
MOST_BYTES = 15 << 20  # of a file
BETWEEN = "\n" + "=" * 40 + "\n"  # the tables of two runs
MOST_FAILURE = 200_000  # characters of one failure


class Out:
    """Appends to the files of one folder; whole lines by any number of processes at once."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder

    def path(self, name: str) -> Path:
        return self.folder / name

    def text(self, name: str, text: str) -> None:
        """Append, unless the file is full."""
        data = text.encode("utf-8", "replace")
        with self.path(name).open("ab", buffering=0) as file:
            if os.fstat(file.fileno()).st_size + len(data) <= MOST_BYTES:
                file.write(data)

    def line(self, name: str, **values: Any) -> None:
        """Append a line of JSON."""
        self.text(name, json.dumps(values, ensure_ascii=False) + "\n")

    def failure(self, name: str, text: str) -> None:
        """A failure whole; of one beyond any reading its two ends."""
        if len(text) > MOST_FAILURE:
            half = MOST_FAILURE // 2
            text = f"{text[:half]}\n[{len(text) - 2 * half} characters left out]\n{text[-half:]}"
        self.text(FAILURES, f"\n===== {name}\n{text.rstrip()}\n")

    def lines(self, name: str) -> Iterator[dict[str, Any]]:
        """The lines of JSON that are whole: the last may have been cut off."""
        file = self.path(name)
        if not file.exists():
            return
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue
