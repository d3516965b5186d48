"""LayerNorm: few and many tokens, half precision and fp32, BGE-M3's width and the widest."""

from __future__ import annotations

import triton
from sass.compiling import Kernel

from m3fast.kernels._triton.layernorm import (
    add_layernorm_kernel,
    default_config,
    embed_layernorm_kernel,
)

NORM = ("x", "residual", "bias", "weight", "shift", "out")
TABLES = ("word", "position", "type_row", "weight", "shift", "out")


def kernels(arch: int) -> list[Kernel]:
    found: list[Kernel] = []
    for dtype, width in (("bf16", 1024), ("fp16", 1024), ("bf16", 4096), ("fp32", 1024)):
        for many in (False, True):
            if width > 1024 and many:
                continue  # the same config
            config = default_config(arch, width, many)
            sizes = {"C": width, "BLOCK": triton.next_power_of_2(width), "ROWS": config.rows}
            label = f"{dtype} {width} rows {config.rows}"
            base = {n: f"*{dtype}" for n in NORM} | {"eps": "fp32", "tokens": "i32"}
            none = dict.fromkeys(("head_weight", "head_bias", "dots"))
            found.append(
                Kernel(
                    f"add_layernorm {label}", add_layernorm_kernel, base, sizes | none,
                    warps=config.warps, unaligned=("tokens",),
                )
            )  # fmt: skip
            head = {"head_weight": f"*{dtype}", "head_bias": f"*{dtype}", "dots": "*fp32"}
            found.append(
                Kernel(
                    f"add_layernorm_dot {label}", add_layernorm_kernel, base | head, sizes,
                    warps=config.warps, unaligned=("tokens", "dots"),
                )
            )  # fmt: skip
            index = {n: "*i32" for n in ("ids", "positions")}
            counts = {n: "i32" for n in ("tokens", "n_words", "n_positions")}
            tables = {n: f"*{dtype}" for n in TABLES} | {"eps": "fp32"}
            found.append(
                Kernel(
                    f"embed_layernorm {label}", embed_layernorm_kernel, index | counts | tables,
                    sizes, warps=config.warps, unaligned=(*counts, *index),
                )
            )  # fmt: skip
    return found
