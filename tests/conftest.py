"""What every test shares. Helpers to import live in modules beside this file."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

with contextlib.suppress(ImportError):  # tests/gpu run where it is not installed
    import hypothesis

    # A slow, shared machine is no failing test, and a red run must be red again when repeated.
    hypothesis.settings.register_profile("m3fast", deadline=None, derandomize=True)
    hypothesis.settings.load_profile("m3fast")


@pytest.fixture(scope="session")
def tiny_in_floats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """m3fast-tiny's int8 weights as float32: what other libraries read, with the same numbers."""
    import torch
    from checkpoints import TINY

    from m3fast.checkpoint.quantize import dequantize

    made = dequantize(TINY, tmp_path_factory.mktemp("floats") / TINY.name, torch.float32).folder
    yield made
    shutil.rmtree(made)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
