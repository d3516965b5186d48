"""The compiled half of the library; the only file that imports `m3fast._C`."""

from __future__ import annotations

import importlib
import os
import threading
import warnings
from typing import Any

import torch

from . import dispatch

_extension: Any = None
why = ""  # the reason the extension is absent, empty when it is there
try:
    _extension = importlib.import_module("m3fast._C")
except ImportError as error:
    why = f"m3fast._C cannot be imported ({error}); install m3fast with a C++ compiler to build it"

# The path that operations on a CPU are to take: an instruction set, or torch's own operations as
# where the extension was not built. Empty for the widest set.
VARIABLE = "M3FAST_CPU_PATH"
forced = os.environ.get(VARIABLE, "")
refused = ""  # the reason why it cannot be taken here
if forced == "torch":
    _extension, why = None, f"{VARIABLE}=torch"
elif forced:
    _paths = [*(_extension.cpu_paths() if _extension else ()), "torch"]
    if forced in _paths:
        _extension.cpu_path(forced)
    else:
        known = ", ".join(_paths)
        refused = f"{VARIABLE}: expected one of {known} on this machine, found {forced!r}"

available = _extension is not None
_warned = forced == "torch"
_calling = threading.local()

# Of the encoder's operations; arithmetic is fp32.
DTYPES = (torch.float32, torch.bfloat16)


def library() -> Any:
    """The module `m3fast._C`, or None where it was not built, which is said once.

    Raises:
        ValueError: M3FAST_CPU_PATH asks for what this machine or this build lacks.
    """
    global _warned
    if refused:
        raise ValueError(refused)
    if _extension is None and not _warned:
        _warned = True
        warnings.warn(f"slower torch and numpy paths are used: {why}", RuntimeWarning, stacklevel=3)
    return _extension


def library_for(*tensors: torch.Tensor | None) -> Any:
    """The module for an inference on these tensors, or None where a torch path must be taken.

    Native code takes contiguous fp32 and bf16 tensors on the CPU of which none wants a gradient.
    """
    wants_gradient = torch.is_grad_enabled()
    for t in tensors:
        if t is None:
            continue
        if not t.is_cpu or t.dtype not in DTYPES or not t.is_contiguous():
            return None
        if wants_gradient and t.requires_grad:
            return None
    return library()


def cuda_library(op: str, *tensors: torch.Tensor) -> Any:
    """The module whose CUDA kernels run `op` on these tensors, or None where torch must.

    Where they are on a GPU and the kernel is not there, that is said once for each op. Gradients
    take the torch path silently.
    """
    if not tensors[0].is_cuda or dispatch.wants_gradient(*tensors):
        return None
    reason = why_no_cuda(tensors[0].device)
    if reason:
        dispatch.say_slower(op, reason)
    return None if reason else _extension


def why_no_cuda(device: torch.device) -> str:
    """Why the extension's CUDA kernels do not run on this GPU, or "" where they do."""
    if _extension is None:
        return why
    if not _extension.has_cuda:
        return "m3fast._C was built without CUDA; install m3fast where nvcc is"
    major, minor = torch.cuda.get_device_capability(device)
    return "" if major >= 8 else f"compute capability 8.0 is needed, {device} has {major}.{minor}"


ALL_BF16 = ("", "torch", "amx")  # paths that leave torch all it finds


def bf16_instructions() -> list[str]:
    """Those with which the CPU path in use multiplies bf16: avx512_bf16, amx."""
    # Without any of them oneDNN emulates bf16, slower than fp32. torch has no public name for
    # these two in every version we support.
    found = {
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),  # pyright: ignore[reportPrivateUsage]
        "amx": torch.cpu._is_amx_tile_supported(),  # pyright: ignore[reportPrivateUsage]
    }
    only = {"avx512bf16": {"avx512_bf16"}}.get(forced, found if forced in ALL_BF16 else ())
    return [name for name, there in found.items() if there and name in only]


def threads() -> int:
    """Threads for one native call: the size of torch's own team, which the call runs on."""
    return getattr(_calling, "most", None) or torch.get_num_threads()


def limit_threads(most: int) -> None:
    """Let native calls of the calling thread use so many threads; 0 for torch's number again."""
    _calling.most = most
