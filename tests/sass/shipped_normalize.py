"""Vectors: picked rows and tokens of texts, at BGE-M3's width and the widest."""

from __future__ import annotations

import triton
from sass.compiling import Kernel

from m3fast.kernels._triton.normalize import vectors_kernel, warps

INTEGERS = ("stride", "n_texts", "n_out")


def kernels(arch: int) -> list[Kernel]:
    found: list[Kernel] = []
    for dtype, width in (("bf16", 1024), ("fp16", 1024), ("fp32", 1024), ("bf16", 4096)):
        base = {"x": f"*{dtype}", "out": "*fp32"} | dict.fromkeys(INTEGERS, "i32")
        size = {"DIM": width, "BLOCK": triton.next_power_of_2(width), "NORMALIZE": True}
        for what, given in (
            ("rows", {"rows": "*i64"}),
            ("tokens", {"texts": "*i32", "cu_seqlens": "*i32"}),
        ):
            none = {n: None for n in ("rows", "texts", "cu_seqlens") if n not in given}
            name = f"vectors of {what} {dtype} {width}"
            found.append(
                Kernel(
                    name, vectors_kernel, base | given, size | none,
                    warps=warps(width), unaligned=(*INTEGERS, *given),
                )
            )  # fmt: skip
    return found
