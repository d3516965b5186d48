"""MaxSim: each class of query tokens, every document dtype, tensor descriptors and pointers."""

from __future__ import annotations

from functools import partial
from unittest import mock

import numpy as np
import torch
from launch.shipped import NAMES, Case

from m3fast.kernels import maxsim as op
from m3fast.kernels import tuning
from m3fast.kernels.gpu import maxsim
from m3fast.kernels.gpu.maxsim_config import MaxsimConfig, default_config

ALL = (maxsim.maxsim_kernel, maxsim.maxsim_mean_kernel)
PAIRS = (maxsim.maxsim_pairs_kernel, maxsim.maxsim_mean_kernel)
ROWS = 300


def call(
    doc: torch.dtype, query: torch.dtype, tokens: int, pairs: bool, dim: int, stride: int,
    config: MaxsimConfig | None,
) -> None:  # fmt: skip
    """One query of `tokens` against two documents, whose rows are `stride` elements apart."""
    docs = torch.zeros(ROWS, stride).to(doc)[:, :dim]
    with mock.patch.object(tuning, "tuned", lambda op, key, default, device: config or default):
        op.maxsim(
            torch.zeros(tokens, dim, dtype=query),
            np.array([0, tokens]),
            docs,
            np.array([0, 100, ROWS]),
            np.array([[0, 0], [0, 1]]) if pairs else None,
            doc_scales=torch.ones(ROWS) if doc in op.SCALED else None,
        )


def case(
    arch: int, config: MaxsimConfig, doc: torch.dtype, query: torch.dtype, tokens: int,
    pairs: bool = False, dim: int = 1024, stride: int | None = None, tuned: bool = False,
) -> Case:  # fmt: skip
    """`tuned`: the config is not the default, but what a table may hold."""
    how = "pairs" if pairs else "descriptors" if config.tma else "pointers"
    name = f"{NAMES[doc]}·{NAMES[query]} {config.block_d}x{config.block_q} d {dim}"
    given = (doc, query, tokens, pairs, dim, stride or dim, config if tuned else None)
    return Case(
        f"maxsim {how} {name}{', unaligned rows' * (stride is not None)}",
        partial(call, *given),
        PAIRS if pairs else ALL,
        mma="" if doc == torch.float32 else "HGMMA" if arch == 90 else "HMMA",
        tma=config.tma,
        spills=stride is not None,
    )


def cases(arch: int) -> list[Case]:
    half, brain, full = torch.float16, torch.bfloat16, torch.float32
    dtypes = [(half, half), (brain, brain), (torch.int8, half), (torch.int8, brain)]
    if arch >= 89:
        dtypes += [(torch.float8_e4m3fn, half), (torch.float8_e4m3fn, brain)]
    found: list[Case] = []
    for doc, query in dtypes:
        for tokens in (32, 64, 2048):
            if doc == brain and tokens == 64:
                continue  # as fp16
            given = (doc, query, tokens)
            pointers = default_config(arch, tokens, doc, tma=False)
            found.append(case(arch, pointers, *given, pairs=True))
            if arch < 90:
                found.append(case(arch, pointers, *given))
            else:
                found.append(case(arch, default_config(arch, tokens, doc, tma=True), *given))
            if arch >= 90 and doc == half:
                found.append(case(arch, pointers, *given, tuned=True))
    odd = default_config(arch, 2048, half, tma=False)
    wide = default_config(arch, 32, full, tma=False)
    narrow = default_config(arch, 32, half, tma=False)
    for pairs in (False, True):
        found.append(case(arch, narrow, half, half, 32, pairs, stride=1028))
        found.append(case(arch, odd, half, half, 2048, pairs, dim=40))
        found.append(case(arch, wide, full, full, 32, pairs))
    return found
