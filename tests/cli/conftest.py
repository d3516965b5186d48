"""A corpus in a file, and windows of few texts, for the tests of `m3fast encode`."""

from __future__ import annotations

from pathlib import Path

import pytest
from encoderuns import CORPUS

from m3fast.engine import engine as engine_module


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "WINDOW_TEXTS", 16)


@pytest.fixture
def corpus(tmp_path: Path, small_windows: None) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("".join(f"{text}\n" for text in CORPUS), encoding="utf-8", newline="\n")
    return path
