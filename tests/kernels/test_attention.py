from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from m3fast.kernels import native
from m3fast.kernels.attention import attention_tiles, most_tiles, varlen_attention
from m3fast.kernels.reference import attention_tiles_ref, varlen_attention_ref


def float64(qkv, cu, scale):
    """The formula in numpy and float64, text by text and head by head."""
    qkv = qkv.double().numpy()
    out = np.full((qkv.shape[0], qkv.shape[2], qkv.shape[3]), np.nan)
    for a, b in pairwise(cu):
        for h in range(qkv.shape[2]):
            q, k, v = (qkv[a:b, i, h] for i in range(3))
            s = q @ k.T * scale
            p = np.exp(s - s.max(1, keepdims=True)) if b > a else s
            out[a:b, h] = p / p.sum(1, keepdims=True) @ v
    return out.reshape(len(qkv), -1)


@pytest.mark.parametrize(("heads", "dim"), [(2, 64), (1, 128), (3, 32), (2, 8), (2, 33), (1, 1)])
def test_fp32(path, rng, ragged, gap, heads, dim):
    qkv = torch.randn(ragged[-1], 3, heads, dim)
    out = torch.full((len(qkv), heads * dim), float("nan"))
    assert varlen_attention(qkv, ragged, 500, out=out) is out
    assert gap(out, float64(qkv, ragged, dim**-0.5)) < 2e-6
    assert gap(out, varlen_attention_ref(qkv, torch.from_numpy(ragged))) < 3e-6


def test_scale_and_large_scores(path, rng, ragged, gap):
    qkv = torch.randn(ragged[-1], 3, 2, 16) * 6
    out = varlen_attention(qkv, torch.from_numpy(ragged), 500, scale=0.7)
    # Scores reach hundreds: their own rounding, 3e-5, decides.
    assert gap(out, float64(qkv, ragged, 0.7)) < 1e-3


def test_scores_far_below_zero(path, rng, ragged, gap):
    qkv = torch.randn(ragged[-1], 3, 2, 16)
    qkv[:, 0] += 5
    qkv[:, 1] -= 8
    assert gap(varlen_attention(qkv, ragged, 500), float64(qkv, ragged, 0.25)) < 1e-3


def test_many_texts_in_any_order(path, rng, gap):
    lengths = rng.integers(0, 90, 60)
    cu = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    qkv = torch.randn(cu[-1], 3, 1, 24)
    assert gap(varlen_attention(qkv, cu, lengths.max()), float64(qkv, cu, 24**-0.5)) < 2e-6


@pytest.mark.parametrize("dim", [7, 24, 64])
def test_bf16(path, rng, ragged, gap, dim):
    qkv = torch.randn(ragged[-1], 3, 2, dim, dtype=torch.bfloat16)
    exact = varlen_attention_ref(qkv.float(), torch.from_numpy(ragged))
    plain = []
    for a, b in pairwise(ragged):
        q, k, v = qkv[a:b].permute(1, 2, 0, 3)
        plain.append(torch.softmax(q @ k.mT * dim**-0.5, -1) @ v)
    plain = torch.cat(plain, 1).transpose(0, 1).reshape(len(qkv), -1)
    out = torch.full_like(plain, float("nan"))
    varlen_attention(qkv, ragged, 500, out=out)
    assert gap(out, exact) <= 2 * gap(plain, exact)


def test_8192_tokens(rng, gap):
    qkv = torch.randn(8192, 3, 1, 16)
    q, k, v = (x[None] for x in qkv.permute(1, 2, 0, 3))
    sdpa = F.scaled_dot_product_attention(q, k, v)[0, 0]
    out = varlen_attention(qkv, torch.tensor([0, 8192], dtype=torch.int32), 8192)
    assert gap(out, sdpa) < 2e-6


@pytest.mark.parametrize("texts", [0, 3])
def test_empty_batch(path, texts):
    out = varlen_attention(torch.empty(0, 3, 2, 8), np.zeros(texts + 1, np.int32), 0)
    assert out.shape == (0, 16)


def test_nan_stays_in_its_text(path, rng):
    qkv = torch.randn(10, 3, 1, 8)
    qkv[2] = float("nan")
    out = varlen_attention(qkv, np.array([0, 4, 10], np.int32), 6)
    assert out[:4].isnan().all()
    assert not out[4:].isnan().any()


def test_a_text_does_not_see_its_batch(path, rng, ragged):
    if path == "torch":
        pytest.skip("torch takes other kernels for other group sizes")
    qkv = torch.randn(ragged[-1], 3, 2, 64)
    whole = varlen_attention(qkv, ragged, 500)
    a, b = int(ragged[8]), int(ragged[9])
    alone = varlen_attention(qkv[a:b], np.array([0, b - a], np.int32), b - a)
    assert torch.equal(alone, whole[a:b])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits(path, rng, ragged, same_bits, dtype):
    if path == "torch":
        pytest.skip("torch's own matter")
    qkv = torch.randn(ragged[-1], 3, 2, 64).to(dtype)
    same_bits(lambda: varlen_attention(qkv, ragged, 500))


def test_gradient(rng, gap):
    cu = np.array([0, 3, 3, 8], np.int32)
    grads = []
    for op in (lambda x: varlen_attention(x, cu, 5), lambda x: varlen_attention_ref(x, cu)):
        qkv = torch.randn(8, 3, 2, 4, generator=torch.Generator().manual_seed(1))
        qkv.requires_grad_()
        op(qkv).square().sum().backward()
        grads.append(qkv.grad)
    assert gap(*grads) < 1e-5


def test_strided_input_takes_torch(rng, gap):
    qkv = torch.randn(9, 6, 2, 8)[:, ::2]
    cu = np.array([0, 9], np.int32)
    assert native.library_for(qkv) is None
    assert gap(varlen_attention(qkv, cu, 9), float64(qkv, cu, 8**-0.5)) < 2e-6


def offsets(lengths):
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def test_tiles(path):
    # Short texts of 3 + 4 and 2 + 6 tokens share a tile, across empty ones; 9 and 20 stand alone.
    cu = offsets([0, 3, 0, 4, 2, 0, 6, 9, 1, 20, 8, 0])
    assert attention_tiles(cu, 8, 8).tolist() == [
        [25, 8, 25, 20], [33, 8, 25, 20], [41, 4, 25, 20],
        [15, 8, 15, 9], [23, 1, 15, 9],
        [7, 8, 7, 8], [45, 8, 45, 8], [0, 7, 0, 7], [24, 1, 24, 1],
    ]  # fmt: skip


def test_tiles_cover_each_token_once(path, rng):
    for top, short, rows in ((30, 32, 0), (90, 64, 64), (400, 64, 128), (40, 1, 1)):
        lengths = rng.integers(0, top, 50)
        cu = offsets(lengths)
        tiles = attention_tiles(cu, short, rows)
        assert tiles.dtype == np.int32
        assert np.array_equal(tiles, attention_tiles_ref(cu.tolist(), short, max(rows, 1)))
        assert (np.diff(tiles[:, 3]) <= 0).all()
        assert len(tiles) <= len(lengths) + cu[-1] // max(rows, 1)
        seen = np.zeros(cu[-1], np.int64)
        for row, count, key, keys in tiles:
            seen[row : row + count] += 1
            assert key in cu
            assert key + keys in cu
            assert (row, count) == (key, keys) if keys <= short else count <= rows
        assert (seen == 1).all()


@pytest.mark.parametrize("lengths", [[], [0], [0, 0]])
def test_no_tiles(path, lengths):
    assert attention_tiles(offsets(lengths), 32, 0).shape == (0, 4)


def test_bad_arguments(path):
    qkv, cu = torch.zeros(5, 3, 1, 8), np.array([0, 2, 5], np.int32)
    with pytest.raises(TypeError, match=r"qkv: expected a torch\.Tensor"):
        varlen_attention(qkv.numpy(), cu, 3)
    with pytest.raises(TypeError, match="qkv: expected dtype"):
        varlen_attention(qkv.long(), cu, 3)
    with pytest.raises(ValueError, match=r"qkv: expected shape \[T, 3, H, D\]"):
        varlen_attention(torch.zeros(5, 2, 1, 8), cu, 3)
    with pytest.raises(ValueError, match="qkv: expected 4 dimensions"):
        varlen_attention(torch.zeros(5, 24), cu, 3)
    with pytest.raises(TypeError, match="cu_seqlens: expected dtype int32"):
        varlen_attention(qkv, cu.astype(np.int64), 3)
    with pytest.raises(TypeError, match="cu_seqlens"):
        varlen_attention(qkv, [0, 2, 5], 3)
    for bad in ([0, 2, 4], [1, 2, 5], [0, 6, 5], []):
        with pytest.raises(ValueError, match="cu_seqlens"):
            varlen_attention(qkv, np.array(bad, np.int32), 3)
    with pytest.raises(ValueError, match="max_seqlen: expected 3 from cu_seqlens, found 2"):
        varlen_attention(qkv, cu, 2)
    with pytest.raises(ValueError, match=r"out: expected shape \[5, 8\]"):
        varlen_attention(qkv, cu, 3, out=torch.zeros(5, 9))


@pytest.mark.parametrize(("short", "rows"), [(32, 0), (64, 64), (64, 128), (32, 128), (16, 16)])
def test_most_tiles(rng, short, rows):
    for _ in range(200):
        longest = short if rows == 0 else int(rng.choice([2, short, short + 1, 4 * rows + 1]))
        lengths = rng.integers(0 if rng.random() < 0.5 else longest, longest + 1, 40)
        cu = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        tiles = attention_tiles(cu, short, rows)
        assert len(tiles) <= most_tiles(int(cu[-1]), len(lengths), short, rows)
