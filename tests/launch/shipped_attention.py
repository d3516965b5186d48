"""Attention: each length class, dtype and head size, by TMA where the architecture has it."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from launch.shipped import NAMES, Case

from m3fast.kernels.attention import attention_plan, varlen_attention
from m3fast.kernels.gpu.attention import attention_kernel, default_config

LENGTHS = {"32": 32, "64": 64, "128": 128, "longer": 500, "any": 32}
WIDTH = 1024


def call(dtype: torch.dtype, dim: int, longest: str, shift: int = 0, early: bool = False) -> None:
    """A few texts, `shift` elements from an aligned address; `early` few tokens."""
    length = LENGTHS[longest]
    ends = np.array([0, length] if early else [0, 1, 1 + length, 1 + 2 * length], np.int32)
    tokens, heads = int(ends[-1]), WIDTH // dim
    flat = torch.empty(3 * WIDTH * tokens + shift, dtype=dtype)[shift:]
    plan = attention_plan(ends, length, dim, dtype, flat.device)
    varlen_attention(flat.view(tokens, 3, heads, dim), ends, length, plan=plan, early=early)


def case(
    arch: int, dtype: torch.dtype, dim: int, longest: str, shift: int = 0, early: bool = False
) -> Case:
    config = default_config(arch, dtype, dim, longest)
    # A warp group of 4 and 64 rows are the least that wgmma takes.
    wide = arch >= 90 and config.warps >= 4 and config.short >= 64
    return Case(
        f"attention {NAMES[dtype]} D{dim} {longest}{', pointers' * bool(shift)}"
        f"{', early' * early}",
        partial(call, dtype, dim, longest, shift, early),
        (attention_kernel,),
        mma="" if dtype == torch.float32 else "HGMMA" if wide else "HMMA",
        tma=config.tma and not shift,
    )


def cases(arch: int) -> list[Case]:
    half, full = torch.float16, torch.float32
    found = [
        case(arch, dtype, dim, longest)
        for dtype in (half, torch.bfloat16)
        for dim in (32, 64, 128)
        for longest in ("32", "64", "128", "longer")
    ]
    found.append(case(arch, half, 16, "longer"))
    found += [case(arch, full, dim, "any") for dim in (16, 32, 64, 128)]  # one config for all
    if arch >= 90:  # at an address that TMA does not take
        found += [case(arch, half, dim, "longer", shift=4) for dim in (32, 64, 128)]
        found += [
            case(arch, dtype, 64, longest, early=True)
            for dtype in (half, torch.bfloat16)
            for longest in ("32", "64")
        ]
        found.append(case(arch, full, 64, "any", early=True))
    return found
