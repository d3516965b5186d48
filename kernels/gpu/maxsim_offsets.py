"""Where queries and documents begin: brought to the device in one copy, and told to each tile."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray

Offsets = NDArray[np.int64] | torch.Tensor  # on the host, or on the device


def upload(device: torch.device, *arrays: Offsets) -> list[torch.Tensor]:
    """int64 arrays on the device, in one copy for those on the host.

    By way of pinned memory: out of any other a copy may wait for the stream.
    """
    hosted = [x for x in arrays if isinstance(x, np.ndarray)]
    starts = list(accumulate((-x.size // 2 * -2 for x in hosted), initial=0))  # on 16 bytes each
    on_gpu = device.type == "cuda" and bool(hosted)
    buffer = torch.empty(starts[-1], dtype=torch.int64, pin_memory=on_gpu)
    for x, start in zip(hosted, starts, strict=False):
        buffer.numpy()[start : start + x.size] = x.reshape(-1)
    buffer = buffer.to(device, non_blocking=True) if on_gpu else buffer
    places = iter(starts)
    return [
        buffer[(start := next(places)) : start + x.size].view(x.shape)
        if isinstance(x, np.ndarray)
        else x.to(torch.int64).contiguous()
        for x in arrays
    ]


def first_documents(d_offsets: Offsets, rows: int, block: int) -> Offsets:
    """The first document that ends beyond the first row of each tile of `block`: int64 [tiles].

    It is found where the offsets are; nothing waits for the device. nd where there is none.
    """
    if isinstance(d_offsets, np.ndarray):
        return np.searchsorted(d_offsets[1:], np.arange(0, rows, block), side="right")
    starts = torch.arange(0, rows, block, dtype=d_offsets.dtype, device=d_offsets.device)
    return torch.searchsorted(d_offsets[1:], starts, right=True)
