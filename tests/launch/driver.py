"""Triton's own CUDA driver and launcher without a GPU: over `libcuda.c`, which executes nothing.

Kernels are compiled, loaded and launched on CPU tensors as on a device of compute capability 8.0 or
9.0: their machine code, grids, shared memory and tensor maps are checked, and no value is computed.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia
from triton.compiler import CompiledKernel
from triton.runtime import driver as triton_driver
from triton.runtime.jit import JITFunction

from m3fast.kernels import attention, dispatch

ARCHS = (80, 90)
SOURCE = Path(__file__).with_name("libcuda.c")
INCLUDE = Path(nvidia.__file__).parent / "include"
FOLDER = SOURCE.parents[2] / "build"


def build(folder: Path = FOLDER) -> Path:
    """`libcuda.so.1`, compiled once for each version of its source and of Triton's cuda.h.

    Raises:
        RuntimeError: no C compiler.
    """
    found = (shutil.which(c) for c in (os.environ.get("CC", ""), "cc", "gcc", "clang"))
    compiler = next((c for c in found if c), None)
    if compiler is None:
        raise RuntimeError("a C compiler was expected on the path: gcc or clang")
    parts = SOURCE.read_bytes() + (INCLUDE / "cuda.h").read_bytes()
    library = folder / f"libcuda-{hashlib.sha256(parts).hexdigest()[:16]}" / "libcuda.so.1"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as made:  # several processes may build it
            new = Path(made) / library.name
            options = ["-std=gnu11", "-O1", "-shared", "-fPIC", f"-Wl,-soname,{library.name}"]
            subprocess.run(
                [compiler, *options, f"-I{INCLUDE}", "-o", str(new), str(SOURCE)], check=True
            )
            new.replace(library)
    return library


@functools.cache
def library() -> ctypes.CDLL:
    """The library, loaded under its name, by which Triton finds it.

    Raises:
        RuntimeError: a GPU is here, whose own libcuda has that name; or Triton interprets.
    """
    if torch.cuda.is_available():
        raise RuntimeError("no GPU was expected: its libcuda is loaded already")
    if knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET: unset was expected, kernels are to be compiled")
    path = build()
    knobs.nvidia.libcuda_path = str(path.parent)  # what Triton's modules are linked with
    return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


def counts() -> dict[str, int]:
    """Modules loaded, kernels launched and tensor maps encoded by this process."""
    return {
        name: ctypes.c_long.in_dll(library(), f"fake_{name}").value
        for name in ("modules", "launches", "maps")
    }


class Launcher(nvidia.CudaLauncher):
    """Triton's, but an empty grid is an error: Triton would launch nothing and say nothing."""

    def __init__(self, src: Any, metadata: Any) -> None:
        super().__init__(src, metadata)
        self.name = metadata.name

    def __call__(self, *args: Any) -> None:
        if 0 in args[:3]:
            raise RuntimeError(f"{self.name}: grid: at least 1 was expected, got {args[:3]}")
        super().__call__(*args)


class Driver(nvidia.CudaDriver):
    """Triton's, without torch.cuda. The device is the architecture: Triton caches kernels by it."""

    def __init__(self) -> None:
        self.device = ctypes.c_int.in_dll(library(), "fake_device")
        self.utils = nvidia.CudaUtils()
        self.launcher_cls = Launcher

    def get_current_device(self) -> int:
        return self.device.value

    def set_current_device(self, device: int) -> None:
        self.device.value = device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_capability(self, device: int) -> tuple[int, int]:
        return divmod(device, 10)

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.device.value, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


_driver = functools.cache(Driver)


def activate(arch: int) -> None:
    """For good: ops take CPU tensors as those of an `arch`, and Triton launches there."""
    if arch not in ARCHS:
        raise ValueError(f"arch: 80 or 90 was expected, got {arch}")
    _driver().set_current_device(arch)
    triton_driver.set_active(_driver())
    dispatch.interpreter = True
    dispatch.arch = lambda device: arch  # type: ignore[assignment]
    attention._config.cache_clear()  # its key is the device


@contextlib.contextmanager
def active(arch: int) -> Iterator[None]:
    """`activate` within the block."""
    before = triton_driver._active, dispatch.interpreter, dispatch.arch
    device = _driver().get_current_device()
    try:
        activate(arch)
        yield
    finally:
        triton_driver._active, dispatch.interpreter, dispatch.arch = before
        _driver().set_current_device(device)
        attention._config.cache_clear()


def zero_memory() -> None:
    """For good: new tensors hold zeros, for code that reads what kernels would have written."""

    def zeroed(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        return lambda *args, **kwargs: make(*args, **kwargs).zero_()

    for place, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        setattr(place, name, zeroed(getattr(place, name)))


@contextlib.contextmanager
def recorded() -> Iterator[list[CompiledKernel]]:
    """The kernels launched within the block, in order."""
    launched: list[CompiledKernel] = []
    run = JITFunction.run

    def recording(self: JITFunction[Any], *args: Any, **kwargs: Any) -> Any:
        kernel = run(self, *args, **kwargs)
        launched.append(kernel)
        return kernel

    JITFunction.run = recording
    try:
        yield launched
    finally:
        JITFunction.run = run


@contextlib.contextmanager
def compiled() -> Iterator[list[str]]:
    """Names of the kernels compiled, or read from Triton's cache on disk, within the block."""
    names: list[str] = []
    before = knobs.compilation.listener
    knobs.compilation.listener = lambda *, src, **_: names.append(src.name)
    try:
        yield names
    finally:
        knobs.compilation.listener = before
