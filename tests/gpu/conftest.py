"""The GPU kernels, tested on a GPU, or on the CPU under Triton's interpreter.

The interpreter must be chosen before Triton is imported, so these tests run in a process of their
own: `TRITON_INTERPRET=1 pytest tests/gpu` without a GPU, `pytest tests/gpu` with one.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not INTERPRETED and not torch.cuda.is_available():
    collect_ignore_glob = ["test_*.py"]

DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
# The interpreter's bf16 dot returns garbage (triton issue 11584).
DOT_DTYPES = [torch.float32, torch.float16] + ([] if INTERPRETED else [torch.bfloat16])


def _scalars_count_loops() -> None:
    """numpy 2.4 refuses int(array of one value), by which Triton 3.6's interpreter counts."""
    import triton
    from triton.runtime import interpreter

    if not triton.__version__.startswith("3.6."):
        return  # mended in 3.7

    patch = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patched


if INTERPRETED:
    _scalars_count_loops()


@pytest.fixture(autouse=True)
def _interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    from m3fast.kernels import triton_path

    monkeypatch.setattr(triton_path, "interpreter", INTERPRETED)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` need the real thing."""
    for item in items:
        if INTERPRETED and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def device() -> torch.device:
    return DEVICE


@pytest.fixture(params=DOT_DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture
def seed() -> int:
    """A different seed on every run, shown where a test fails."""
    value = int(np.random.SeedSequence().entropy % 2**31)
    print(f"seed {value}")
    return value


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    torch.manual_seed(seed)
    return np.random.default_rng(seed)


@pytest.fixture
def gap():
    """gap(a, b): greatest absolute difference, NaN if there is any NaN."""

    def measure(a: torch.Tensor, b: torch.Tensor) -> float:
        a, b = a.double().cpu(), b.double().cpu()
        assert a.shape == b.shape
        return (a - b).abs().max().item() if a.numel() else 0.0

    return measure
