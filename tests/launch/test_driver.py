"""That wrong launches are refused, each by the rule it breaks; and that no kernel is left out."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import inspect
import pkgutil
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from launch import driver, shipped
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from m3fast.kernels import gpu, tuning
from m3fast.kernels.maxsim import maxsim

pytestmark = pytest.mark.slow


@triton.jit
def copy_kernel(x, y, ROWS: tl.constexpr, COLS: tl.constexpr):
    tile = x.load([0, 0])
    cells = tl.arange(0, ROWS)[:, None] * COLS + tl.arange(0, COLS)[None, :]
    tl.store(y + cells, tile)


class Described:
    """A tensor that its descriptor's own checks do not see to be elsewhere."""

    def __init__(self, base: torch.Tensor, shift: int) -> None:
        self.base, self.shift, self.dtype = base, shift, base.dtype

    def data_ptr(self) -> int:
        return self.base.data_ptr() + self.shift


BOX = (16, 64)


def described(shape=(64, 128), strides=(128, 1), shift=0) -> TensorDescriptor:
    """What it says is planted past the checks of Triton's own class."""
    x = torch.empty(64, 128, dtype=torch.float16)
    map_ = TensorDescriptor(x, [64, 128], [128, 1], list(BOX))
    map_.base, map_.shape, map_.strides = Described(x, shift), list(shape), list(strides)
    return map_


def copy(grid=(1,), **planted) -> None:
    """A tile loaded by a tensor map."""
    y = torch.empty(BOX, dtype=torch.float16)
    copy_kernel[grid](described(**planted), y, ROWS=BOX[0], COLS=BOX[1], num_warps=4)


@pytest.fixture(autouse=True)
def _hopper():
    with driver.active(90):
        yield


def test_launches_and_maps_are_counted():
    before = driver.counts()
    copy()
    copy(grid=(7, 2, 3))
    after = driver.counts()
    assert after["launches"] == before["launches"] + 2
    assert after["maps"] == before["maps"] + 2


@pytest.mark.parametrize(
    ("planted", "message"),
    [
        (dict(strides=(132, 1)), r"globalStrides\[0\]: expected a multiple of 16 .* found 264"),
        (dict(strides=(2**39, 1)), r"globalStrides\[0\]: .* below 2\^40, found 1099511627776"),
        (dict(strides=(120, 1)), r"globalStrides\[0\]: expected at least 256, found 240"),
        (dict(shift=2), "globalAddress: expected a multiple of 16"),
        (dict(shape=(0, 128)), r"globalDim\[1\]: expected 1 to 2\^32, found 0"),
    ],
    ids=str,
)
def test_a_wrong_tensor_map_is_refused(planted, message):
    with pytest.raises(RuntimeError, match=message):
        copy(**planted)


GOOD = dict(type=6, rank=2, dims=(128, 64), strides=(256,), box=(64, 16), steps=(1, 1), swizzle=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, ""),
        (dict(type=13), "tensorDataType: expected 0 to 12, found 13"),
        (dict(rank=6), "tensorRank: expected 1 to 5, found 6"),
        (dict(box=(64, 257)), r"boxDim\[1\]: expected 1 to 256, found 257"),
        (dict(box=(0, 16)), r"boxDim\[0\]: expected 1 to 256, found 0"),
        (dict(box=(4, 16)), r"boxDim\[0\]: expected a multiple of 16 bytes, found 8"),
        (dict(box=(128, 16)), r"boxDim\[0\]: expected at most the swizzle's 128 bytes, found 256"),
        (dict(box=(128, 16), swizzle=0), ""),
        (dict(steps=(1, 9)), r"elementStrides\[1\]: expected 1 to 8, found 9"),
        (dict(interleave=1), "interleave: expected none, found 1"),
        (dict(swizzle=7), "swizzle: expected 0 to 6, found 7"),
        (dict(promotion=4), "l2Promotion: expected 0 to 3, found 4"),
        (dict(type=0, fill=1), "oobFill: expected none for integers"),
    ],
    ids=str,
)
def test_every_rule_of_tensor_maps(change, message):
    """What Triton's own checks, or its compiler, would not let through to the library."""
    given = GOOD | change
    room = ctypes.create_string_buffer(256)
    at = (ctypes.addressof(room) + 63) // 64 * 64
    text = ctypes.c_char_p(b"")
    error = driver.library().cuTensorMapEncodeTiled(
        ctypes.c_void_p(at), given["type"], given["rank"], ctypes.c_void_p(1 << 20),
        (ctypes.c_uint64 * 2)(*given["dims"]), (ctypes.c_uint64 * 1)(*given["strides"]),
        (ctypes.c_uint32 * 2)(*given["box"]), (ctypes.c_uint32 * 2)(*given["steps"]),
        given.get("interleave", 0), given["swizzle"], given.get("promotion", 2),
        given.get("fill", 0),
    )  # fmt: skip
    driver.library().cuGetErrorString(error, ctypes.byref(text))
    assert bool(error) == bool(message)
    assert re.search(message, (text.value or b"").decode())


def test_a_grid_without_programs_is_refused():
    message = r"copy_kernel: grid: expected at least 1, found \(0, 1, 1\)"
    with pytest.raises(RuntimeError, match=message):
        copy(grid=(0,))
    with pytest.raises(RuntimeError, match="expected grid y of 1 to 65535, found 65536"):
        copy(grid=(1, 65536))


@pytest.mark.parametrize(
    ("warps", "shared", "message"),
    [
        (4, 48 << 10, ""),
        (4, (48 << 10) + 1, "expected at most 49152 bytes of dynamic shared memory, found 49153"),
        (8, 0, "expected block x of 128 as compiled, found 256"),
        (64, 0, "expected block x of 1 to 1024, found 2048"),
    ],
)
def test_a_wrong_block_is_refused(warps, shared, message):
    """With more than the 48 KiB that a kernel may take unasked, or other threads than it has."""
    with driver.recorded() as launched:
        copy()
    (kernel,) = launched
    block = (warps, 1, shared)
    with pytest.raises(RuntimeError, match=message) if message else contextlib.nullcontext():
        kernel.run(
            1, 1, 1, 0, kernel.function, block, None, None, None,
            described(), torch.empty(BOX, dtype=torch.float16), *BOX,
        )  # fmt: skip


def test_too_much_shared_memory_is_refused(monkeypatch):
    """By Triton, which asks the device for its limit: 163 KiB or 227."""
    documents = torch.zeros(300, 1024, dtype=torch.float16)
    both = (documents[:32], np.array([0, 32]), documents, np.array([0, 300]), np.array([[0, 0]]))

    def deep(op, key, default, device):
        return replace(default, block_q=128, stages=7)  # 6 of them x 32 KiB

    monkeypatch.setattr(tuning, "tuned", deep)
    with driver.active(80), pytest.raises(triton.OutOfResources, match=r"shared memory.*166912"):
        maxsim(*both)
    maxsim(*both)


def test_a_module_and_a_kernel_are_of_their_device():
    with driver.recorded() as launched:
        copy()
    (kernel,) = launched
    utils = driver._driver().utils
    with driver.active(80), pytest.raises(RuntimeError, match=r"a cubin for sm_80, found sm_90"):
        utils.load_binary(kernel.name, kernel.asm["cubin"], 0, 80)
    with pytest.raises(RuntimeError, match="expected a cubin"):
        utils.load_binary(kernel.name, bytes(64), 0, 90)
    with pytest.raises(RuntimeError, match="the module has no kernel other"):
        utils.load_binary("other", kernel.asm["cubin"], 0, 90)
    with pytest.raises(RuntimeError, match=r"232448 bytes of dynamic shared .* found 232449"):
        utils.cuOccupancyMaxActiveClusters(kernel.function, 232449, 1)


def test_every_kernel_has_a_shipped_launch():
    """A kernel is what a launch_<op> gives a grid: `name[grid](…)`."""
    kernels = {
        (module.__name__, name)
        for info in pkgutil.iter_modules(gpu.__path__)
        for module in [importlib.import_module(f"{gpu.__name__}.{info.name}")]
        for name, value in vars(module).items()
        if isinstance(value, JITFunction) and f"{name}[" in inspect.getsource(module)
    }
    assert len(kernels) > 8
    for arch in driver.ARCHS:
        cases = shipped.cases(arch)
        found = {(k.module, k.fn.__name__) for case in cases for k in case.kernels}
        of_90 = {("m3fast.kernels.gpu.linear", "linear_kernel")} if arch < 90 else set()
        assert found == kernels - of_90
