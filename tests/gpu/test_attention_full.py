"""The attention kernel at full size: addresses beyond 32 bits, and what only a GPU shows."""

import math
import mmap

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import triton
from gpu.attention_runs import agrees, exact, offsets, poisoned, run
from nearness import as_near

from m3fast.kernels.attention import (
    AttentionPlan,
    attention_plan,
    attention_tiles,
    varlen_attention,
)
from m3fast.kernels.gpu import attention as kernel


@pytest.fixture
def room(device):
    """Room on the GPU for 18 GB, which are given back to those who test beside us."""
    if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] < 18e9:
        pytest.skip("needs 18 GB")
    yield
    if device.type == "cuda":
        torch.cuda.empty_cache()


def untouched(count, device):
    """`count` fp16 values; on the CPU pages of memory that exist once they are written."""
    if device.type == "cuda":
        return torch.empty(count, dtype=torch.float16, device=device)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE, named from 3.13 on
    return torch.frombuffer(mmap.mmap(-1, 2 * count, flags=flags), dtype=torch.float16)


@pytest.mark.usefixtures("room")
@pytest.mark.parametrize("lengths", [(7, 20), (70, 140)])
def test_addresses_beyond_32_bits(device, rng, gap, lengths):
    cu = offsets(lengths)
    heads, dim = 4, 32
    before = 2**31 // (heads * dim) + 10  # rows whose outputs alone take 2³¹ values
    tokens = before + int(cu[-1])
    qkv = untouched(tokens * 3 * heads * dim, device).view(tokens, 3, heads, dim)
    out = untouched(tokens * heads * dim, device).view(tokens, heads * dim)
    qkv[before:] = torch.randn(cu[-1], 3, heads, dim, device=device)
    plan = attention_plan(cu, max(lengths), dim, qkv.dtype, device)
    plan.tiles[:, 0::2] += before
    texts = untouched(2 * tokens, device).view(torch.int32)
    texts[before:] = plan.texts
    varlen_attention(qkv, None, 0, out=out, plan=AttentionPlan(plan.tiles, texts, max(lengths)))
    agrees(gap, out[before:], qkv[before:], cu)


@pytest.mark.usefixtures("room")
def test_a_text_beyond_32_bits(device, rng, gap):
    """One text whose rows lie 2²⁵ values apart, so that its second block begins beyond 2³¹."""
    length, dim, heads = 150, 16, 2**25 // 48 + 1
    qkv = untouched(length * 3 * heads * dim, device).view(length, 3, heads, dim)
    out = untouched(length * heads * dim, device).view(length, heads * dim)
    mine = torch.randn(length, 3, 1, dim, device=device).half()
    qkv[:, :, :1] = mine
    tiles = torch.from_numpy(attention_tiles(offsets([length]), 16, 64)).to(device)
    # A launch for each tile: the full grid has all the heads.
    for tile in tiles:
        kernel.attention_kernel[(1,)](
            qkv, out, tile, tile, None, heads, dim**-0.5 * math.log2(math.e),
            D=dim, SHORT=16, ROWS=64, KEYS=64, PRECISION="tf32", PDL=False,
        )  # fmt: skip
    agrees(gap, out[:, :dim], mine, offsets([length]))


@pytest.mark.gpu
def test_random_batches(device, rng, gap):
    for _ in range(200):
        top = int(rng.choice([20, 64, 128, 600]))
        cu = offsets([*rng.integers(0, top, rng.integers(1, 30)), 1])
        qkv = torch.randn(cu[-1], 3, 4, 64, device=device, dtype=torch.bfloat16)
        agrees(gap, run(qkv, cu), qkv, cu)


@pytest.mark.gpu
@pytest.mark.parametrize("dim", [32, 64, 128])
def test_8192_tokens(device, dtype, rng, gap, dim):
    cu = offsets([8192, 8191, 1])
    qkv = torch.randn(cu[-1], 3, 2, dim, device=device, dtype=dtype)
    agrees(gap, run(qkv, cu), qkv, cu)


@pytest.mark.gpu
def test_captured(device, rng):
    cu = offsets([20, 7, 500])
    qkv = torch.randn(cu[-1], 3, 4, 64, device=device, dtype=torch.bfloat16)
    want, out = run(qkv, cu), poisoned(qkv)
    plan = attention_plan(cu, 500, 64, qkv.dtype, device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        varlen_attention(qkv, None, 0, out=out, plan=plan)
    out.fill_(float("nan"))
    graph.replay()
    assert torch.equal(out, want)


@pytest.mark.gpu
def test_no_compilation_after_the_first(device, rng, monkeypatch):
    def batch(top, tokens):
        cu = offsets(np.minimum(rng.integers(1, top + 1, tokens), top))
        cu = offsets([*np.diff(cu), top])
        qkv = torch.randn(cu[-1], 3, 4, 64, device=device, dtype=torch.bfloat16)
        varlen_attention(qkv, cu, top)

    tops = (32, 64, 128, 129)
    for top in tops:
        batch(top, 3)
    compiled = []
    hook = "jit_post_compile_hook"
    monkeypatch.setattr(triton.knobs.runtime, hook, lambda **found: compiled.append(found["repr"]))
    for _ in range(100):
        for top in tops:
            batch(top, int(rng.integers(1, 40)))
    assert not compiled


@pytest.mark.gpu
def test_as_near_as_sdpa(device, rng):
    qkv = torch.randn(777, 3, 16, 64, device=device, dtype=torch.bfloat16)
    q, k, v = (x[None] for x in qkv.permute(1, 2, 0, 3))
    sdpa = F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1).reshape(777, -1)
    cu = offsets([777])
    as_near(run(qkv, cu), exact(qkv, cu), sdpa)
