"""The GPU kernels, tested on a GPU, or on the CPU under Triton's interpreter.

The interpreter must be chosen before Triton is imported, so these tests run in a process of their
own: `TRITON_INTERPRET=1 pytest tests/gpu` without a GPU, `pytest tests/gpu` with one.

`M3FAST_LAUNCH=90 pytest tests/gpu` (or 80) compiles and launches the same kernels on the CPU over a
libcuda that executes nothing (tests/launch/driver.py). Nothing is computed, so no value is
compared: an `assert` in tests/ only evaluates; what is refused or raised fails a test.
"""

from __future__ import annotations

import ast
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np
import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
LAUNCHED = int(os.environ.get("M3FAST_LAUNCH") or 0)
ON_CPU = INTERPRETED or bool(LAUNCHED)
if not ON_CPU and not torch.cuda.is_available():
    collect_ignore_glob = ["test_*.py"]

DEVICE = torch.device("cpu" if ON_CPU else "cuda")
# The interpreter's bf16 dot returns garbage (triton issue 11584).
DOT_DTYPES = [torch.float32, torch.float16] + ([] if INTERPRETED else [torch.bfloat16])
# Tests that cannot be launched only: how they go on depends on a result.
NEED_VALUES = ("test_gpurunner.py::test_what_is_not_finite_is_refused",)


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


class _Unasserted(ast.NodeTransformer):
    def visit_Assert(self, node: ast.Assert) -> ast.Expr:
        return ast.copy_location(ast.Expr(node.test), node)


class _WithoutAsserts(importlib.machinery.SourceFileLoader):
    """Compiles modules in which `assert x` is `x`, whatever pytest makes of asserts."""

    def get_code(self, fullname: str) -> CodeType:
        tree = _Unasserted().visit(ast.parse(self.get_data(self.path)))
        return compile(tree, self.path, "exec", dont_inherit=True)


class _TestsWithoutAsserts(importlib.abc.MetaPathFinder):
    """Finds the modules of tests/, before pytest does."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec and spec.origin and Path(spec.origin).is_relative_to(Path(__file__).parents[1]):
            spec.loader = _WithoutAsserts(fullname, spec.origin)
            return spec
        return None


def _launch() -> None:
    """Over the driver that executes nothing, in memory that is not random, without comparisons."""
    from launch import driver

    driver.activate(LAUNCHED)
    driver.zero_memory()
    for module in (np.testing, torch.testing):
        for name in [name for name in vars(module) if name.startswith("assert_")]:
            setattr(module, name, lambda *_, **__: None)
    sys.meta_path.insert(0, _TestsWithoutAsserts())


if LAUNCHED:
    _launch()
elif INTERPRETED:
    _scalars_count_loops()


@pytest.fixture(autouse=True)
def _interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    from m3fast.kernels import dispatch

    monkeypatch.setattr(dispatch, "interpreter", ON_CPU)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` need the real thing."""
    for item in items:
        name = item.nodeid.rpartition("/")[2].partition("[")[0]
        if ON_CPU and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        elif LAUNCHED and name in NEED_VALUES:
            item.add_marker(pytest.mark.skip(reason="needs the values that a kernel computes"))
        elif LAUNCHED == 80 and "float8" in item.name:
            item.add_marker(pytest.mark.skip(reason="needs compute capability 8.9"))


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
