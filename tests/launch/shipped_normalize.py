"""Vectors: picked rows, all rows and tokens of texts, at BGE-M3's width and the widest."""

from __future__ import annotations

from functools import partial

import torch
from launch.shipped import NAMES, Case

from m3fast.kernels import normalize
from m3fast.kernels.gpu.normalize import vectors_kernel

TOKENS = 40


def call(what: str, dtype: torch.dtype, width: int, unit: bool) -> None:
    x = torch.empty(TOKENS, width, dtype=dtype)
    if what == "tokens":
        texts, ends = torch.zeros(TOKENS, dtype=torch.int32), torch.tensor([0, TOKENS]).int()
        normalize.vectors_of_tokens(x, texts, ends, unit)
    else:
        rows = torch.arange(3) if what == "rows" else None
        normalize.vectors_of_rows(x, rows, unit)


def cases(arch: int) -> list[Case]:
    half, brain, full = torch.float16, torch.bfloat16, torch.float32
    return [
        Case(
            f"vectors of {what} {NAMES[dtype]} {width}{', any length' * (not unit)}",
            partial(call, what, dtype, width, unit),
            (vectors_kernel,),
        )
        for dtype, width, unit in (
            (brain, 1024, True), (half, 1024, True), (full, 1024, True), (brain, 4096, True),
            (brain, 1024, False),
        )
        for what in ("rows", "all", "tokens")
    ]  # fmt: skip
