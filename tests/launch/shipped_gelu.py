"""Bias + GELU: BGE-M3's inner width and a narrow one."""

from __future__ import annotations

from functools import partial

import torch
from launch.shipped import NAMES, Case

from m3fast.kernels.gelu import bias_gelu_
from m3fast.kernels.gpu.gelu import bias_gelu_kernel


def call(dtype: torch.dtype, width: int) -> None:
    bias_gelu_(torch.empty(40, width, dtype=dtype), torch.empty(width, dtype=dtype))


def cases(arch: int) -> list[Case]:
    half, brain, full = torch.float16, torch.bfloat16, torch.float32
    return [
        Case(f"bias_gelu {NAMES[dtype]} {width}", partial(call, dtype, width), (bias_gelu_kernel,))
        for dtype, width in ((brain, 4096), (half, 4096), (full, 4096), (brain, 256))
    ]
