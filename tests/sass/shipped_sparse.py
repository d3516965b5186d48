"""Sparse rows: first positions and best weights, then compaction in order or sorted."""

from __future__ import annotations

from sass.compiling import Kernel

from m3fast.kernels._triton.sparse import (
    default_config,
    sparse_best_kernel,
    sparse_scatter_kernel,
)

READ = {"ids": "*i32", "cu_seqlens": "*i32", "texts": "*i32", "best": "*fp32", "counts": "*i32"}
SIZES = {"tokens": "i32", "n_texts": "i32"}


def kernels(arch: int) -> list[Kernel]:
    config = default_config(arch)
    tiles = {"ROWS": config.rows, "KEYS": config.keys}
    first = READ | {"weights": "*fp32"} | SIZES
    second = READ | {"out": "*i32"} | SIZES
    return [
        Kernel(
            "sparse best", sparse_best_kernel, first, tiles | {"DROPPED": (0, 1, 2, 3)},
            warps=config.warps, unaligned=tuple(first),
        ),
        *(
            Kernel(
                f"sparse scatter{', sorted' * sort}", sparse_scatter_kernel, second,
                tiles | {"SORT": sort}, warps=config.warps, unaligned=tuple(second),
            )
            for sort in (False, True)
        ),
    ]  # fmt: skip
