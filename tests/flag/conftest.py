"""A small checkpoint and a drop-in on one device, for the tests of a module."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoints import make_checkpoint

from m3fast import BGEM3FlagModel


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"), seed=9)


@pytest.fixture(scope="module")
def model(path: Path) -> BGEM3FlagModel:
    return BGEM3FlagModel(str(path), devices="cpu")
