"""The compiled half of the library; the only file that imports `m3fast._C`."""

from __future__ import annotations

import warnings
from typing import Any

import torch

_extension: Any = None
why = ""  # the reason the extension is absent, empty when it is there
try:
    from m3fast import _C as _extension  # pyright: ignore
except ImportError as error:
    why = f"m3fast._C cannot be imported ({error}); install m3fast with a C++ compiler to build it"

available = _extension is not None
_warned = False

# Dtypes that the vectorised operations read and write; arithmetic is fp32 in both.
DTYPES = (torch.float32, torch.bfloat16)


def library() -> Any:
    """The module `m3fast._C`, or None where it was not built, which is said once."""
    global _warned
    if _extension is None and not _warned:
        _warned = True
        warnings.warn(f"slower torch and numpy paths are used: {why}", RuntimeWarning, stacklevel=3)
    return _extension


def library_for(*tensors: torch.Tensor | None) -> Any:
    """The module for an inference on these tensors, or None where a torch path must be taken.

    Native code takes contiguous fp32 and bf16 tensors on the CPU of which none wants a gradient.
    """
    given = [t for t in tensors if t is not None]
    if any(t.device.type != "cpu" or t.dtype not in DTYPES for t in given):
        return None
    if torch.is_grad_enabled() and any(t.requires_grad for t in given):
        return None
    return library() if all(t.is_contiguous() for t in given) else None


def threads() -> int:
    """Threads for one native call: the size of torch's own team, which the call runs on."""
    return torch.get_num_threads()
