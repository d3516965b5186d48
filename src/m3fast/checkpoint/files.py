"""JSON files of a checkpoint: read, or an error that names the file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from m3fast.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file, or CheckpointError naming the file."""
    raw = read_any(file)
    if not isinstance(raw, dict):
        raise CheckpointError(f"{file}: expected a JSON object, found {type(raw).__name__}")
    return raw  # pyright: ignore[reportUnknownVariableType]


def optional_json(file: Path) -> dict[str, Any]:
    """`read_json`, or nothing where there is no such file."""
    return read_json(file) if file.is_file() else {}


def read_any(file: Path) -> Any:
    """Any JSON value from a file, or CheckpointError naming the file."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file}: expected a model's {file.name}, found no file") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: expected JSON, found {error}") from error
