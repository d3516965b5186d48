"""The attention kernel over a poisoned output, in memory that ends where the tensors end."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np
import torch
from nearness import as_near, plain_attention

from m3fast.kernels.attention import (
    AttentionPlan,
    attention_plan,
    attention_tiles,
    varlen_attention,
)
from m3fast.kernels.gpu import attention as kernel
from m3fast.kernels.reference import varlen_attention_ref

# A bound that a wrong row, mask or block breaks by far; fp16 and bf16 are held to torch instead.
FP32 = 3e-5


def offsets(lengths):
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def exact(qkv, cu, scale=None):
    return varlen_attention_ref(qkv.double(), torch.from_numpy(cu), scale)


def poisoned(qkv):
    return qkv.new_full((len(qkv), qkv.shape[2] * qkv.shape[3]), float("nan"))


def guarded(tensor):
    """A copy that ends where readable memory ends, so that a step beyond it is a crash."""
    if tensor.is_cuda or not len(tensor):
        return tensor
    page = mmap.PAGESIZE
    room = -(-tensor.nbytes // page) * page
    memory = mmap.mmap(-1, room + page)
    last = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + room
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(last), ctypes.c_size_t(page), 0) == 0
    copy = torch.frombuffer(
        memory, dtype=tensor.dtype, count=tensor.numel(), offset=room - tensor.nbytes
    )
    return copy.view(tensor.shape).copy_(tensor)


def run(qkv, cu, config=None, scale=None):
    """The kernel, in a given config or its own, over a poisoned output."""
    qkv, out = guarded(qkv), guarded(poisoned(qkv))
    if config is None:
        longest = int(np.diff(cu).max())
        plan = attention_plan(cu, longest, qkv.shape[3], qkv.dtype, qkv.device)
        plan = AttentionPlan(guarded(plan.tiles), guarded(plan.texts), longest)
        found = varlen_attention(qkv, cu, longest, scale, out=out, plan=plan)
        assert found is out
        return found
    tiles = torch.from_numpy(attention_tiles(cu, config.short, config.rows)).to(qkv.device)
    texts = np.repeat(np.arange(len(cu) - 1, dtype=np.int32), np.diff(cu))
    scale = qkv.shape[3] ** -0.5 if scale is None else scale
    kernel.launch_attention(qkv, tiles, torch.from_numpy(texts).to(qkv.device), scale, out, config)
    return out


def agrees(gap, out, qkv, cu, scale=None):
    want = exact(qkv, cu, scale)
    if qkv.dtype == torch.float32:
        assert gap(out, want) <= FP32
    else:
        as_near(out, want, plain_attention(qkv, cu, scale), cu)
