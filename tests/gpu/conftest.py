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
    collect_ignore_glob = ["test_*.py", "first"]

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


@pytest.fixture
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.empty gives NaN: what a kernel does not write is seen."""
    empty = torch.empty

    def poisoned(*sizes: Any, **options: Any) -> torch.Tensor:
        made = empty(*sizes, **options)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.fixture
def fast_reduction(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """MaxSim's maximum by numpy: the interpreter would combine element by element, in Python."""
    if device.type == "cuda":
        return
    from triton.runtime.interpreter import ReduceOps

    from m3fast.kernels.gpu.maxsim import _greater

    slow = ReduceOps.apply_impl

    def fast(self: Any, x: Any) -> Any:
        known = self.combine_fn is _greater
        return self.min_max(x[0], val_reduce_op=np.max) if known else slow(self, x)

    monkeypatch.setattr(ReduceOps, "apply_impl", fast)


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


@pytest.fixture(scope="session")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint for the tests of the whole runner."""
    from checkpoints import make_checkpoint
    from gpurunners import SHAPE

    return make_checkpoint(tmp_path_factory.mktemp("model"), **SHAPE)


@pytest.fixture(scope="session")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BGE-M3's width and heads, four layers."""
    from checkpoints import make_checkpoint

    folder = tmp_path_factory.mktemp("big")
    return make_checkpoint(
        folder, hidden=1024, heads=16, ffn=4096, layers=4, positions=8194, seed=9, deep=True
    )


@pytest.fixture
def pair(path: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """GPU kernels and CPU; buckets that a few texts fill, and one text more than the last holds."""
    from gpurunners import cpu_engine

    from m3fast import Engine
    from m3fast.runner import buckets
    from m3fast.runner.gpu import GpuRunner

    monkeypatch.setattr(buckets, "BUCKETS", (16, 48, 64))
    ours = Engine.from_pretrained(path, device=str(device), dtype="float32")
    assert isinstance(ours.runner, GpuRunner)
    return ours, cpu_engine(path, monkeypatch)


@pytest.fixture
def tall(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 16 tokens for LayerNorm: of one, nine tenths of the time goes to interpreting it."""
    from m3fast.kernels import dispatch
    from m3fast.kernels.gpu import layernorm

    if dispatch.interpreter:
        config = layernorm.LayerNormConfig(rows=16, warps=1)
        monkeypatch.setattr(layernorm, "_config", lambda *_: config)


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Bucket and tiles of each padded batch."""
    from m3fast.runner.graphs import Graphs

    found, run = [], Graphs.run

    def noted(self: Any, key: Any, work: Any) -> None:
        found.append(key[:2])
        run(self, key, work)

    monkeypatch.setattr(Graphs, "run", noted)
    return found
