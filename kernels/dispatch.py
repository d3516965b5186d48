"""Decides whether a call runs as a Triton kernel, and warns once where it cannot."""

from __future__ import annotations

import functools
import importlib.util
import warnings

import torch

FEW = 64  # tokens, of a query or some: their kernels are made for reading weights, and overlap
# True in tests that run the kernels on CPU tensors under TRITON_INTERPRET=1.
interpreter = False
_said: set[tuple[str, str]] = set()


def why_not(device: torch.device) -> str:
    """Why no Triton kernel runs on this device, or "" where they do."""
    if device.type != "cuda":
        return "" if interpreter else f"device {device.type} has none"
    return _why_not_cuda(device)


@functools.cache
def _why_not_cuda(device: torch.device) -> str:
    if torch.version.hip:
        return "they are made for NVIDIA's processors"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"they need compute capability 8.0, and {device} has {major}.{minor}"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install 'm3fast[gpu]')"
    return ""


@functools.cache
def arch(device: torch.device) -> int:
    """90 for compute capability 9.0 and so on; the interpreter plays an 80."""
    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def unsupported(*tensors: torch.Tensor | None) -> str:
    """Why an elementwise kernel does not take these tensors, or "" where it does."""
    given = [t for t in tensors if t is not None]
    if any(t.dtype == torch.float64 for t in given):
        return "dtype float64"
    return "" if all(t.is_contiguous() for t in given) else "a tensor that is not contiguous"


def wants_gradient(*tensors: torch.Tensor | None) -> bool:
    """Whether autograd would record an op on these tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def takes(op: str, *tensors: torch.Tensor | None, unsupported: str = "") -> bool:
    """Whether `op` runs as a Triton kernel on these tensors, the first of which sets the device.

    Where a GPU is there and the kernel is not, for the reason `unsupported` or the device's own,
    that is said once for each op and reason. Gradients take the torch path silently.

    Raises:
        ValueError: tensors on another GPU than the current one, where Triton would launch.
    """
    first = tensors[0]
    if first is None or not (first.is_cuda or interpreter):
        return False
    if wants_gradient(*tensors):
        return False
    reason = why_not(first.device) or unsupported
    if reason:
        say_slower(op, reason)
    if first.is_cuda and not reason and first.device.index != torch.cuda.current_device():
        raise ValueError(
            f"{op}: expected tensors on the current device, "
            f"cuda:{torch.cuda.current_device()}, found {first.device}: use torch.cuda.device"
        )
    return not reason


def say_slower(op: str, reason: str) -> None:
    """Warn the caller of an op that torch computes it on a GPU, once for each op and reason."""
    if (op, reason) not in _said:
        _said.add((op, reason))
        warnings.warn(
            f"{op}: the slower torch path is used instead of the GPU kernel: {reason}",
            RuntimeWarning,
            stacklevel=4,
        )
