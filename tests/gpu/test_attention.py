import ctypes
import math
import mmap
import warnings
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import triton
from nearness import as_near, plain_attention

from m3fast.kernels import attention, dispatch, tuning
from m3fast.kernels.attention import (
    AttentionPlan,
    attention_class,
    attention_config,
    attention_plan,
    attention_tiles,
    varlen_attention,
)
from m3fast.kernels.gpu import attention as kernel
from m3fast.kernels.reference import varlen_attention_ref

LENGTHS = [1, 2, 31, 0, 33, 63, 64, 65, 1, 129]
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


def needs_tma(device, tma=True):
    if tma and device.type == "cuda" and dispatch.arch(device) < 90:
        pytest.skip("TMA needs compute capability 9.0")


@pytest.mark.parametrize("dim", [16, 32, 64, 128])
@pytest.mark.parametrize("longest", [32, 64, 128, 129])
def test_length_classes(device, dtype, rng, gap, longest, dim):
    lengths = [n for n in LENGTHS if n <= longest]
    cu = offsets(rng.permutation(lengths))
    qkv = torch.randn(cu[-1], 3, 1, dim, device=device, dtype=dtype)
    agrees(gap, run(qkv, cu), qkv, cu)


@pytest.mark.parametrize("tma", [False, True])
def test_many_blocks(device, dtype, rng, gap, tma):
    needs_tma(device, tma)
    cu = offsets([40, 20, 300, 3, 128, 64, 65])
    qkv = torch.randn(cu[-1], 3, 2, 32, device=device, dtype=dtype)
    qkv[:, 1] *= torch.linspace(0.5, 3, len(qkv), device=device).to(dtype)[:, None, None]
    config = kernel.AttentionConfig(32, 64, 32, 4, 2, tma)
    out = run(qkv, cu, config)
    agrees(gap, out, qkv, cu)


def test_tma_and_pointers_agree(device, rng):
    """Compiled for each GPU in the config that ships there; on the same blocks, the same bits."""
    needs_tma(device)
    cu = offsets([200, 129])
    qkv = torch.randn(cu[-1], 3, 2, 64, device=device, dtype=torch.float16)
    config = kernel.default_config(90, torch.float16, 64, "longer")
    assert config.tma
    by_tma, by_pointers = (run(qkv, cu, replace(config, tma=tma)) for tma in (True, False))
    assert torch.equal(by_tma, by_pointers)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 0.7])
def test_scale_and_large_scores(device, rng, gap, scale):
    cu = offsets([5, 30, 0, 150])
    qkv = torch.randn(cu[-1], 3, 1, 16, device=device) * 6
    want = exact(qkv, cu, scale)
    # Scores reach hundreds: their own rounding, 3e-5, decides; 5e-4 in the worst of 400 runs.
    assert gap(run(qkv, cu, scale=scale), want) < 3e-3


@pytest.mark.parametrize("rising", [True, False])
def test_scores_far_below_zero(device, rng, gap, rising):
    cu = offsets([6, 9, 170])
    qkv = torch.randn(cu[-1], 3, 1, 16, device=device)
    qkv[:, 0] += 5
    qkv[:, 1] -= 8 * torch.linspace(1, 2, len(qkv), device=device)[:, None, None]
    qkv = qkv.flip(0) if rising else qkv
    cu = offsets([170, 9, 6]) if rising else cu
    assert gap(run(qkv, cu), exact(qkv, cu)) < 1e-3


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's own, in the interpreter
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", [0, 1, 2])
def test_not_finite_stays_in_its_text(device, rng, part, bad):
    # Text 1 shares tiles with its neighbours, text 4 ends in a partial block, as does text 6.
    cu = offsets([7, 9, 11, 5, 100, 40, 70])
    given = torch.randn(cu[-1], 3, 2, 32, device=device)
    clean = run(given, cu)
    for text in (1, 4):
        qkv = given.clone()
        a, b = cu[text : text + 2]
        qkv[a + 3, part, 1, 5] = bad
        out = run(qkv, cu)
        touched = torch.zeros(len(out), dtype=torch.bool, device=device)
        touched[a:b] = True
        assert torch.equal(out[~touched], clean[~touched])
        assert torch.equal(out[:, :32], clean[:, :32])
        changed = out[touched][:, 32:]
        if part == 2:  # one dimension of V, in every row of the text, and no other
            assert not changed[:, 5].isfinite().any()
            changed = changed[:, torch.arange(32) != 5]
            assert changed.isfinite().all()
        elif math.isnan(bad):
            rows = changed.isnan().all(1)
            assert rows[3] and (part == 0 or rows.all())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_not_finite_everywhere(device, rng):
    """Also where it is the first, the last and the only text of a tile."""
    lengths = [3, 4, 25, 32, 1, 1]
    cu = offsets(lengths)
    qkv = torch.randn(cu[-1], 3, 1, 16, device=device)
    clean = run(qkv, cu)
    for a, b in pairwise(cu):
        dirty = qkv.clone()
        dirty[a:b] = float("nan")
        out = run(dirty, cu)
        assert out[a:b].isnan().all()
        out[a:b] = clean[a:b]
        assert torch.equal(out, clean)


def test_padded_bucket(device, dtype, rng, gap):
    """Junk tokens at the end, unused tiles, a class above the texts': as a CUDA graph sees it."""
    cu = offsets([20, 70, 8, 140])
    real, capacity = cu[-1], 300
    qkv = torch.full((capacity, 3, 2, 32), float("nan"), device=device, dtype=dtype)
    qkv[:real] = torch.randn(real, 3, 2, 32, device=device).to(dtype)
    plan = attention_plan(cu, 500, 32, dtype, device)
    tiles = torch.zeros(len(plan.tiles) + 5, 4, dtype=torch.int32, device=device)
    tiles[:, 0::2] = 2**30  # nothing else of an unused tile is read
    tiles[: len(plan.tiles)] = plan.tiles
    texts = torch.full((capacity,), 4, dtype=torch.int32, device=device)
    texts[:real] = plan.texts
    out = poisoned(qkv)
    # With a plan neither offsets nor the longest length are read.
    varlen_attention(qkv, None, -1, out=out, plan=AttentionPlan(tiles, texts, 500))
    assert out[real:].isnan().all()
    agrees(gap, out[:real], qkv[:real], cu)


def test_random_texts_without_a_plan(device, rng, gap):
    for top in (20, 60, 100):
        lengths = rng.integers(0, top, 12)
        cu = offsets(lengths)
        qkv = torch.randn(cu[-1], 3, 1, 16, device=device)
        out = varlen_attention(qkv, cu, lengths.max())
        assert gap(out, exact(qkv, cu)) < FP32


@pytest.mark.parametrize("texts", [0, 3])
def test_empty_batch(device, dtype, texts):
    qkv = torch.empty(0, 3, 2, 64, device=device, dtype=dtype)
    assert varlen_attention(qkv, np.zeros(texts + 1, np.int32), 0).shape == (0, 128)


def test_no_tiles(device):
    qkv = torch.zeros(2, 3, 1, 16, device=device)
    none = torch.zeros(0, 4, dtype=torch.int32, device=device)
    plan = AttentionPlan(none, torch.zeros(2, dtype=torch.int32, device=device), 0)
    assert varlen_attention(qkv, None, 0, plan=plan).shape == (2, 16)
    config = kernel.AttentionConfig(32, 64, 64, 4, 2, tma=True)
    kernel.launch_attention(qkv[:0], none, plan.texts, 1.0, poisoned(qkv), config)


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
            D=dim, SHORT=16, ROWS=64, KEYS=64, PRECISION="tf32",
        )  # fmt: skip
    agrees(gap, out[:, :dim], mine, offsets([length]))


def test_tuned_config_is_used(device, monkeypatch, gap, rng):
    row = {
        "op": "attention",
        "key": {"dtype": "torch.float32", "dim": "16", "longest": "longer"},
        "config": {"short": 16, "rows": 64, "keys": 16},
    }
    monkeypatch.setattr(tuning, "_table", lambda device: [row])
    attention._config.cache_clear()
    try:
        assert attention_config(16, torch.float32, 200, device).rows == 64
        assert attention_config(16, torch.float32, 100, device).rows == 32  # the fp32 default
        cu = offsets([12, 140, 9])
        qkv = torch.randn(cu[-1], 3, 1, 16, device=device)
        assert gap(run(qkv, cu), exact(qkv, cu)) < FP32
    finally:
        attention._config.cache_clear()


def test_classes():
    assert [attention_class(n) for n in (0, 1, 32, 33, 64, 65, 128, 129, 8192)] == [
        "32", "32", "32", "64", "64", "128", "128", "longer", "longer",
    ]  # fmt: skip


def test_every_config_takes_every_length_of_its_class():
    for arch in (80, 90):
        for dtype in kernel.DTYPES:
            for dim in kernel.DIMS:
                for longest in ("32", "64", "128", "longer"):
                    for config in kernel.candidates(arch, dtype, dim, longest):
                        top = 8192 if longest == "longer" else int(longest)
                        assert config.short >= top or (config.rows and config.keys)
                        assert config.tma <= (arch >= 90)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("qkv", "scale", "said"),
    [
        (torch.randn(9, 3, 1, 33), None, "head size 16, 32, 64 or 128 was expected, got 33"),
        (torch.randn(9, 3, 1, 16).double(), None, "float64"),
        (torch.zeros(9, 6, 1, 16)[:, ::2], None, "strided"),
        (torch.randn(9, 3, 1, 16), -1.0, "a finite scale >= 0 was expected, got -1.0"),
    ],
)
def test_fallback_is_said(device, monkeypatch, gap, qkv, scale, said):
    monkeypatch.setattr(dispatch, "_said", set())
    cu = offsets([4, 5])
    # A copy to a device would be contiguous.
    qkv = qkv.to(device) if qkv.is_contiguous() else torch.zeros(9, 6, 1, 16, device=device)[:, ::2]
    with pytest.warns(RuntimeWarning, match="varlen_attention: the slower torch path") as caught:
        out = varlen_attention(qkv, cu, 5, scale)
    assert said in str(caught[0].message)
    assert gap(out, exact(qkv, cu, scale)) < 1e-4  # torch's own, on a GPU in kernels of its choice
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        varlen_attention(qkv, cu, 5, scale)


def test_bad_arguments(device):
    qkv = torch.zeros(5, 3, 1, 16, device=device)
    plan = attention_plan(offsets([2, 3]), 3, 16, qkv.dtype, device)
    with pytest.raises(ValueError, match="max_seqlen: 3 was expected from cu_seqlens, got 2"):
        varlen_attention(qkv, offsets([2, 3]), 2)
    with pytest.raises(ValueError, match="cu_seqlens: a last entry of 5"):
        varlen_attention(qkv, offsets([2, 2]), 2)
    with pytest.raises(ValueError, match=r"plan\.texts: shape \[5\] was expected, got \[4\]"):
        varlen_attention(qkv, None, 3, plan=replace(plan, texts=plan.texts[:4]))
    with pytest.raises(TypeError, match=r"plan\.tiles: dtype torch\.int32"):
        varlen_attention(qkv, None, 3, plan=replace(plan, tiles=plan.tiles.long()))
    with pytest.raises(ValueError, match=r"plan\.tiles: shape \[1, 4\]"):
        varlen_attention(qkv, None, 3, plan=replace(plan, tiles=plan.tiles[:, :3]))
    with pytest.raises(ValueError, match=r"plan\.tiles: a contiguous tensor"):
        wide = torch.zeros(1, 8, dtype=torch.int32, device=device)
        varlen_attention(qkv, None, 3, plan=replace(plan, tiles=wide[:, ::2]))
    with pytest.raises(ValueError, match="short: at least 1"):
        attention_tiles(offsets([2]), 0, 0)
    with pytest.raises(ValueError, match="rows: at least 1 was expected for 3 tokens, got 0"):
        attention_tiles(offsets([2, 3]), 2, 0)


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


def test_plan_of_bad_offsets(device):
    make = partial(attention_plan, dim=64, dtype=torch.float16, device=device)
    with pytest.raises(TypeError, match="cu_seqlens"):
        make(np.array([0, 4]), 4)
    for bad in ([1, 4], [0, 5, 4], []):
        with pytest.raises(ValueError, match="cu_seqlens"):
            make(np.array(bad, np.int32), 8)
    with pytest.raises(ValueError, match="longest: at least 5"):
        make(np.array([0, 5], np.int32), 4)
    assert make(np.array([0, 5], np.int32), 8).tiles.tolist() == [[0, 5, 0, 5]]
