"""Sparse rows: first positions and best weights, then compaction in order or sorted."""

from __future__ import annotations

from functools import partial

import torch
from launch.shipped import Case

from m3fast.kernels.gpu.sparse import sparse_best_kernel, sparse_scatter_kernel
from m3fast.kernels.sparse import sparse_csr

TOKENS = 200
KERNELS = (sparse_best_kernel, sparse_scatter_kernel)


def call(sort: bool) -> None:
    ids, texts = torch.zeros(2, TOKENS, dtype=torch.int32)
    ends = torch.tensor([0, TOKENS]).int()
    sparse_csr(ids, torch.empty(TOKENS), ends, texts, (0, 1, 2, 3), sort=sort)


def cases(arch: int) -> list[Case]:
    return [
        Case(f"sparse{', sorted' * sort}", partial(call, sort), KERNELS) for sort in (False, True)
    ]
