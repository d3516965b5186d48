"""The rooms of bench/: a file imports from its own room and from those below."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
BELOW = {
    "core": set(),
    "report": {"core"},
    "peers": {"core"},
    "cpu": {"core", "peers"},
    "gpu": {"core", "peers"},
    "serve": {"core", "peers"},
}


@pytest.mark.parametrize("room", BELOW)
def test_a_room_imports_from_below(room: str) -> None:
    for file in (BENCH / room).glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bench."):
                found = node.module.split(".")[1]
                assert found in {room, *BELOW[room]}, f"{file.name} imports {node.module}"


def test_every_room_is_in_the_ladder() -> None:
    assert {folder.name for folder in BENCH.iterdir() if (folder / "__init__.py").exists()} == {
        *BELOW
    }
