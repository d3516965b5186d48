"""Packed queries and documents of unit vectors, and their exact scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from m3fast.kernels.reference import maxsim_ref

# Of unit vectors, whose products are summed in fp32: far below the roundings of half precision.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-5, torch.bfloat16: 2e-5}
EIGHT_BITS = [torch.int8, torch.float8_e4m3fn]


def ends(lengths):
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def vectors(rows, dim, dtype, device):
    return torch.nn.functional.normalize(torch.randn(rows, dim), dim=1).to(device, dtype)


def reference(q, q_ends, d, d_ends):
    offsets = (torch.from_numpy(q_ends), torch.from_numpy(d_ends))
    return maxsim_ref(q.cpu().float(), offsets[0], d.cpu().float(), offsets[1])


def on(device, *arrays):
    return [torch.from_numpy(a).to(device) for a in arrays]


def skip_float8(dtype, device):
    if dtype == torch.float8_e4m3fn and device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if (major, minor) < (8, 9):
            pytest.skip("needs compute capability 8.9")
