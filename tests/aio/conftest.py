"""A small checkpoint, and an engine of it that makes batches of at most 200 tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoints import make_checkpoint

from m3fast import Engine


@pytest.fixture(scope="session")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"), seed=7)


@pytest.fixture
def engine(path: Path) -> Engine:
    return Engine.from_pretrained(path, device="cpu", dtype="float32", token_budget=200)
