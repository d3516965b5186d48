"""Every kernel that ships, in every config it ships in: calls of ops as the runtime makes them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

NAMES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.int8: "i8",
    torch.float8_e4m3fn: "fp8e4nv",
}


@dataclass(frozen=True)
class Case:
    """One call of an op.

    Attributes:
        name: op, dtype, shape class: of the first kernel; unique within an architecture.
        call: the call, on CPU tensors of the shapes, dtypes, strides and alignment of the runtime.
        kernels: the @triton.jit functions that it launches.
        mma: the tensor-core instruction that the first must contain: "HGMMA", "HMMA", or "".
        tma: whether the first loads by TMA.
        spills: it may spill anywhere: right, but nobody's fast path.
    """

    name: str
    call: Callable[[], object]
    kernels: tuple[Any, ...]
    mma: str = ""
    tma: bool = False
    spills: bool = False


def cases(arch: int) -> list[Case]:
    """Those of each `shipped_<op>.py` beside this file, by its own `cases(arch)`."""
    found = [
        case
        for file in sorted(Path(__file__).parent.glob("shipped_*.py"))
        for case in importlib.import_module(f"launch.{file.stem}").cases(arch)
    ]
    names = [case.name for case in found]
    assert len(set(names)) == len(names), "two cases of one name"
    return found
