"""Random inputs of the first checks: BGE-M3's sizes in bf16, interpreted toy ones in fp16."""

from __future__ import annotations

import os

import numpy as np
import torch
import torch.nn.functional as F

TOY = os.environ.get("TRITON_INTERPRET") == "1"
HALF = torch.float16 if TOY else torch.bfloat16  # the interpreter's bf16 products are garbage
HEADS, DIM, WIDTH = (2, 16, 32) if TOY else (16, 64, 1024)
NAN = float("nan")


def randn(device, *shape, dtype=HALF):
    return torch.randn(shape, device=device).to(dtype)


def unit(device, *shape, dtype=HALF):
    return F.normalize(torch.randn(shape, device=device), dim=-1).to(dtype)


def ends_of(lengths, dtype=np.int32):
    return np.concatenate([[0], np.cumsum(lengths)]).astype(dtype)


def owners_of(lengths, device):
    return torch.from_numpy(np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)).to(device)


def random_ids(rng, lengths, vocab=20_000):
    return [[0, *rng.integers(4, vocab, n - 2).tolist(), 2] for n in lengths]
