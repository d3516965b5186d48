"""What every test shares. Helpers to import live in modules beside this file."""

from __future__ import annotations

import contextlib

import pytest

with contextlib.suppress(ImportError):  # tests/gpu run where it is not installed
    import hypothesis

    # A slow, shared machine is no failing test, and a red run must be red again when repeated.
    hypothesis.settings.register_profile("m3fast", deadline=None, derandomize=True)
    hypothesis.settings.load_profile("m3fast")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
