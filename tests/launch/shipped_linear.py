"""Products of few rows: BGE-M3's four, for one query and for several."""

from __future__ import annotations

from functools import partial

import torch
from launch.shipped import NAMES, Case

from m3fast.kernels.gelu import linear_gelu
from m3fast.kernels.gpu.layernorm import add_layernorm_kernel
from m3fast.kernels.gpu.linear import linear_kernel
from m3fast.kernels.linear import linear
from m3fast.kernels.residual import linear_add_layernorm


def plain(dtype: torch.dtype, rows: int, outs: int, depth: int, gelu: bool) -> None:
    x, weight = torch.empty(rows, depth, dtype=dtype), torch.empty(outs, depth, dtype=dtype)
    call = linear_gelu if gelu else linear
    bias, out = torch.empty(outs, dtype=dtype), torch.empty(rows, outs, dtype=dtype)
    call(x, weight, bias, out=out, early=True)


def summed(dtype: torch.dtype, rows: int, outs: int, depth: int, head: bool) -> None:
    x, weight = torch.empty(rows, depth, dtype=dtype), torch.empty(outs, depth, dtype=dtype)
    residual = torch.empty(rows, outs, dtype=dtype)
    bias, norm, shift, h = torch.empty(4, outs, dtype=dtype)
    given = (h, torch.empty(1, dtype=dtype)) if head else None
    norms = (residual, norm, shift, 1e-5)
    linear_add_layernorm(x, weight, bias, *norms, given, out=residual, early=True)


def cases(arch: int) -> list[Case]:
    """From sm_90 on; few texts' first tokens are the least rows."""
    found: list[Case] = []
    for dtype, sizes in ((torch.bfloat16, (16, 32, 64)), (torch.float16, (32, 64))):
        for rows in sizes if arch >= 90 else ():
            label = f"{NAMES[dtype]} rows {rows}"
            mma = "HGMMA" if rows == 64 else "HMMA"
            for name, outs, depth, gelu in (
                ("qkv", 3072, 1024, False), ("up", 4096, 1024, True),
            ):  # fmt: skip
                call = partial(plain, dtype, rows, outs, depth, gelu)
                found.append(Case(f"linear {name} {label}", call, (linear_kernel,), mma=mma))
            for name, depth, head in (("out", 1024, False), ("down", 4096, False),
                                      ("last", 4096, True)):  # fmt: skip
                call = partial(summed, dtype, rows, 1024, depth, head)
                kernels = (linear_kernel, add_layernorm_kernel)
                found.append(Case(f"linear {name} {label}", call, kernels, mma=mma))
    return found
