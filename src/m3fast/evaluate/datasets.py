"""Which format a path holds, and its datasets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from m3fast.errors import InputError
from m3fast.evaluate import squad

if TYPE_CHECKING:
    from m3fast.evaluate.dataset import Dataset


def load_dataset(path: str | Path, format: str = "auto") -> list[Dataset]:
    root = Path(path)
    files = sorted(root.glob("*.json")) if root.is_dir() else [root]
    if not files:
        raise InputError(f"{root}: expected .json files, found none")
    return [squad.load(file) for file in files]
