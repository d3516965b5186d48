"""LayerNorm: few and many tokens, half precision and fp32, BGE-M3's width and the widest."""

from __future__ import annotations

from functools import partial

import torch
from launch.shipped import NAMES, Case

from m3fast.kernels import layernorm
from m3fast.kernels.gpu.layernorm import (
    FEW_TOKENS,
    add_layernorm_kernel,
    default_config,
    embed_layernorm_kernel,
)

EPS = 1e-5


def add(dtype: torch.dtype, width: int, tokens: int, *head: torch.Tensor) -> None:
    x, residual = torch.empty(2, tokens, width, dtype=dtype)
    norm = (x, residual, *torch.empty(3, width, dtype=dtype), EPS)
    if head:
        layernorm.add_layernorm_dot(*norm, *head, out=residual)
    else:
        layernorm.add_layernorm(*norm, out=residual)


def add_dot(dtype: torch.dtype, width: int, tokens: int) -> None:
    add(dtype, width, tokens, *(torch.empty(n, dtype=dtype) for n in (width, 1)))


def embed(dtype: torch.dtype, width: int, tokens: int) -> None:
    ids = torch.zeros(tokens, dtype=torch.int32)
    word, position = torch.empty(2, 20, width, dtype=dtype)
    out = torch.empty(tokens, width, dtype=dtype)
    rows = torch.empty(3, width, dtype=dtype)
    layernorm.embed_layernorm(ids, ids, word, position, *rows, EPS, out=out, check_ids=False)


def cases(arch: int) -> list[Case]:
    half, brain, full = torch.float16, torch.bfloat16, torch.float32
    found: list[Case] = []
    for dtype, width in ((brain, 1024), (half, 1024), (brain, 4096), (full, 1024)):
        for many in (False, True):
            if width > 1024 and many:
                continue  # the same config
            label = f"{NAMES[dtype]} {width} rows {default_config(arch, width, many).rows}"
            shape = (dtype, width, FEW_TOKENS + 1 if many else 40)
            found += [
                Case(f"{name} {label}", partial(call, *shape), (kernel,))
                for name, kernel, call in (
                    ("add_layernorm", add_layernorm_kernel, add),
                    ("add_layernorm_dot", add_layernorm_kernel, add_dot),
                    ("embed_layernorm", embed_layernorm_kernel, embed),
                )
            ]
    return found
