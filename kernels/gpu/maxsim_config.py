"""Tiles of the MaxSim kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .. import dispatch, tuning


@dataclass(frozen=True)
class MaxsimConfig:
    """Tile of document rows × query tokens × dimensions."""

    block_d: int
    block_q: int
    block_k: int
    warps: int
    stages: int
    tma: bool = False


def default_config(arch: int, tokens: int, dtype: torch.dtype, tma: bool) -> MaxsimConfig:
    """One for up to 32 query tokens, one for up to 64 and one for more.

    In bf16 at d = 1024 `m3fast tune` found 1 to 6 % more on an H200: its table has that.
    """
    if dtype == torch.float32:  # not on tensor cores: for tests and small stores
        return MaxsimConfig(32, 32, 32, 4, 2)
    if not tma:  # at most 96 KiB of stages: sm_86, sm_89 and sm_120 give a block 99
        if tokens <= 64:
            return MaxsimConfig(128, 32 if tokens <= 32 else 64, 64, 4, 4)
        return MaxsimConfig(128, 128, 64, 8, 3)
    if tokens <= 32:
        # Bound by memory: two blocks per multiprocessor. The query tile comes from L2 again for
        # each document tile, an eighth more traffic with 256 rows, a quarter with 128.
        return MaxsimConfig(256, 32, 64, 8, 3 if dtype.itemsize == 2 else 4, tma=True)
    if tokens <= 64:
        return MaxsimConfig(128, 64, 64, 4, 4, tma=True)
    # Bound by arithmetic: the largest tile whose reduction needs no spill.
    return MaxsimConfig(256, 128, 64, 8, 4, tma=True)


def candidates(arch: int, tokens: int, dtype: torch.dtype, tma: bool) -> list[MaxsimConfig]:
    """What `m3fast tune` times, the default first."""
    default = default_config(arch, tokens, dtype, tma)
    if dtype == torch.float32:
        return [default]
    tiles = [(128, 32), (256, 32), (128, 64), (256, 64), (128, 128), (256, 128)]
    limit = 1024 * (200 if tma else 160 if arch in (80, 90) else 96)
    return [default] + [
        config
        for block_d, block_q in (tiles[:4] if tokens <= 64 else tiles[2:])
        for block_k in (64, 128)
        for stages in (2, 3, 4, 5)
        if stages * block_k * (block_d * dtype.itemsize + block_q * 2) <= limit
        for config in [
            MaxsimConfig(block_d, block_q, block_k, 4 if block_d == 128 else 8, stages, tma)
        ]
        if config != default
    ]


def _describable(docs: torch.Tensor, queries: torch.Tensor, config: MaxsimConfig) -> bool:
    """Whether the copy engine of sm_90 takes these matrices: rows on 16-byte boundaries."""
    return docs.shape[1] >= config.block_k and all(
        x.data_ptr() % 16 == 0 and x.stride(0) * x.itemsize % 16 == 0 for x in (docs, queries)
    )


def config_for(docs: torch.Tensor, queries: torch.Tensor, tokens: int, pairs: bool) -> MaxsimConfig:
    """The measured config of the nearest shape, else the default, that these matrices allow."""
    arch = dispatch.arch(docs.device)
    default = default_config(arch, tokens, docs.dtype, arch // 10 in (9, 10) and not pairs)
    key = {"dtype": str(docs.dtype), "dim": docs.shape[1], "tokens": tokens, "rows": len(docs)}
    config = tuning.tuned("maxsim_pairs" if pairs else "maxsim", key, default, docs.device)
    if config.tma and not _describable(docs, queries, config):
        return default_config(arch, tokens, docs.dtype, tma=False)
    return config
