"""Files of datasets in tests, written and loaded."""

from __future__ import annotations

import gzip
from pathlib import Path

from m3fast.evaluate import Dataset


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


def only(datasets: list[Dataset]) -> Dataset:
    (dataset,) = datasets
    return dataset
