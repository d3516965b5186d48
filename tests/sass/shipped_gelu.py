"""Bias + GELU: BGE-M3's inner width and a narrow one."""

from __future__ import annotations

from sass.compiling import Kernel

from m3fast.kernels._triton.gelu import bias_gelu_kernel, default_config


def kernels(arch: int) -> list[Kernel]:
    found: list[Kernel] = []
    for dtype, width in (("bf16", 4096), ("fp16", 4096), ("fp32", 4096), ("bf16", 256)):
        config = default_config(arch, width)
        found.append(
            Kernel(
                f"bias_gelu {dtype} {width}",
                bias_gelu_kernel,
                {"x": f"*{dtype}", "bias": f"*{dtype}", "tokens": "i32"},
                {"F": width, "ROWS": config.rows, "COLS": config.cols},
                warps=config.warps,
                unaligned=("tokens",),
            )
        )
    return found
