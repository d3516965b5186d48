import numpy as np
import pytest
import torch
import torch.nn.functional as F

from m3fast.kernels.layernorm import add_layernorm, add_layernorm_dot, embed_layernorm
from m3fast.kernels.reference import (
    add_layernorm_dot_ref,
    add_layernorm_ref,
    embed_layernorm_ref,
)

WIDTHS = [1, 3, 8, 20, 64, 100, 1024, 1031]
EPS = 1e-5


def normalise(y, weight, shift, eps=EPS):
    """The formula in numpy and float64."""
    d = y - y.mean(1, keepdims=True)
    return d / np.sqrt((d**2).mean(1, keepdims=True) + eps) * weight + shift


def near(out, parts, weight, shift, eps=EPS):
    """Whether `out` is the float64 result for the sum of `parts`, but for fp32's rounding.

    Numbers as large as the parts lose 16 half units before the mean is taken off. A row of almost
    equal numbers makes that larger: by its 1/σ, and again by what σ itself is off.
    """
    parts = [np.broadcast_to(p, out.shape) for p in parts]
    y, unit = sum(parts), 2.0**-24
    d = y - y.mean(1, keepdims=True)
    over = 1 / np.sqrt((d**2).mean(1, keepdims=True) + eps)
    lost = 16 * unit * sum(map(np.abs, parts)).max(1, keepdims=True) * over
    bound = np.abs(weight) * lost * (1 + np.abs(d) * over)
    bound += 8 * unit * (np.abs(d) * over * np.abs(weight) + np.abs(shift))
    return bool((np.abs(out.double().numpy() - normalise(y, weight, shift, eps)) <= bound).all())


def wide(*tensors):
    return [t.double().numpy() for t in tensors]


def parameters(width, dtype=torch.float32):
    return [torch.randn(width).to(dtype) for _ in range(3)]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", [1, 37])
def test_add_fp32(path, rng, width, rows):
    # A mean far from 0: E[y²] - E[y]² would fail here.
    x, residual = torch.randn(rows, width) + 30, torch.randn(rows, width)
    bias, weight, shift = parameters(width)
    out = torch.full_like(x, float("nan"))
    assert add_layernorm(x, residual, bias, weight, shift, EPS, out=out) is out
    x64, r64, b64, w64, s64 = wide(x, residual, bias, weight, shift)
    assert near(out, (x64, r64, b64), w64, s64)
    assert near(add_layernorm_ref(x, residual, bias, weight, shift, EPS), (x64, r64, b64), w64, s64)
    bare = add_layernorm(x, residual, None, weight, shift, 0.5)
    assert near(bare, (x64, r64), w64, s64, 0.5)


def test_add_is_accurate(path, rng, gap):
    x, residual = torch.randn(50, 1024), torch.randn(50, 1024)
    bias, weight, shift = parameters(1024)
    x64, r64, b64, w64, s64 = wide(x, residual, bias, weight, shift)
    out = add_layernorm(x, residual, bias, weight, shift, EPS)
    assert gap(out, normalise(x64 + r64 + b64, w64, s64)) < 3e-6


@pytest.mark.parametrize("alias", ["x", "residual"])
def test_add_in_place(path, rng, gap, alias):
    x, residual = torch.randn(40, 100), torch.randn(40, 100)
    expected = add_layernorm(x, residual, *parameters_of_seven(100), EPS)
    target = {"x": x, "residual": residual}[alias]
    out = add_layernorm(x, residual, *parameters_of_seven(100), EPS, out=target)
    assert out is target
    assert torch.equal(out, expected)


def parameters_of_seven(width):
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(width, generator=generator) for _ in range(3)]


@pytest.mark.parametrize("parameter_dtype", [torch.bfloat16, torch.float32])
def test_add_bf16(path, rng, gap, parameter_dtype):
    x, residual = torch.randn(40, 100).bfloat16(), torch.randn(40, 100).bfloat16()
    bias, weight, shift = (p.bfloat16() for p in parameters(100))
    exact = add_layernorm_ref(*(t.float() for t in (x, residual, bias, weight, shift)), EPS)
    plain = F.layer_norm(x + bias + residual, (100,), weight, shift, EPS)
    given = (p.to(parameter_dtype) for p in (bias, weight, shift))
    out = add_layernorm(x, residual, *given, EPS)
    assert out.dtype == torch.bfloat16
    assert gap(out, exact) <= 2 * gap(plain, exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dot(path, rng, gap, dtype):
    x, residual = torch.randn(41, 100).to(dtype), torch.randn(41, 100).to(dtype)
    given, (h, *_) = parameters(100, dtype), parameters(100, dtype)
    b = torch.zeros(1, dtype=dtype)
    y, weights = add_layernorm_dot(x, residual, *given, EPS, h, b)
    assert torch.equal(y, add_layernorm(x, residual, *given, EPS))
    # Of y as rounded, summed in fp32: terms of up to 5, twenty roundings of them.
    exact = torch.relu(y.double() @ h.double())
    assert gap(weights, exact) <= 100 * torch.finfo(torch.float32).eps
    _, expected = add_layernorm_dot_ref(x, residual, *given, EPS, h, b)
    assert gap(weights, expected) <= 5 * 100**0.5 * torch.finfo(dtype).eps * 4
    out, kept = torch.full_like(x, float("nan")), torch.full((41,), float("nan"))
    again = add_layernorm_dot(x, residual, *given, EPS, h.float(), b, out=out, weights=kept)
    assert again[0] is out and again[1] is kept
    assert torch.equal(out, y)
    assert gap(kept, exact) <= 100 * torch.finfo(torch.float32).eps


def embedding(width, rows, dtype=torch.float32):
    ids = torch.randint(0, 50, (rows,), dtype=torch.int32)
    positions = torch.randint(0, 20, (rows,), dtype=torch.int32)
    word, position = torch.randn(50, width).to(dtype), torch.randn(20, width).to(dtype)
    return ids, positions, word, position, *parameters(width, dtype)


@pytest.mark.parametrize("width", WIDTHS[1:])
def test_embed_fp32(path, rng, width):
    args = embedding(width, 65)
    ids, positions, word, position, type_row, weight, shift = args
    out = embed_layernorm(*args, EPS)
    w64, p64, t64, f64, s64 = wide(word, position, type_row, weight, shift)
    parts = w64[ids.numpy()], p64[positions.numpy()], t64
    assert near(out, parts, f64, s64)
    assert near(embed_layernorm_ref(*args, EPS), parts, f64, s64)
    target = torch.full_like(out, float("nan"))
    assert embed_layernorm(*args, EPS, out=target, check_ids=False) is target
    assert torch.equal(target, out)


def test_embed_bf16(path, rng, gap):
    args = embedding(96, 65, torch.bfloat16)
    ids, positions, word, position, type_row, weight, shift = args
    exact = embed_layernorm_ref(ids, positions, *(t.float() for t in args[2:]), EPS)
    total = word[ids.long()] + position[positions.long()] + type_row
    plain = F.layer_norm(total, (96,), weight, shift, EPS)
    assert gap(embed_layernorm(*args, EPS), exact) <= 2 * gap(plain, exact)


def test_empty(path):
    assert add_layernorm(torch.empty(0, 8), torch.empty(0, 8), *parameters(8), EPS).shape == (0, 8)
    assert embed_layernorm(*embedding(8, 0), EPS).shape == (0, 8)
    x, p = torch.empty(0, 8), parameters(8)
    y, weights = add_layernorm_dot(x, x, *p, EPS, p[0], torch.zeros(1))
    assert y.shape == (0, 8) and weights.shape == (0,)


def test_same_bits(path, rng, same_bits):
    x, residual = torch.randn(300, 1000), torch.randn(300, 1000)
    given = parameters(1000)
    same_bits(lambda: add_layernorm(x, residual, *given, EPS))
    args = embedding(1000, 300)
    same_bits(lambda: embed_layernorm(*args, EPS))


def test_gradient(rng, gap):
    x, residual, *given = torch.randn(4, 6), torch.randn(4, 6), *parameters(6)
    leaves = [t.requires_grad_() for t in (x, residual, *given)]
    out = add_layernorm(*leaves, EPS)
    out.square().sum().backward()
    assert all(t.grad is not None and t.grad.abs().sum() > 0 for t in leaves)


def test_bad_arguments(path):
    x, p = torch.zeros(2, 8), torch.zeros(8)
    with pytest.raises(ValueError, match=r"residual: expected shape \[2, 8\]"):
        add_layernorm(x, torch.zeros(3, 8), p, p, p, EPS)
    with pytest.raises(TypeError, match="residual: expected dtype"):
        add_layernorm(x, x.bfloat16(), p, p, p, EPS)
    with pytest.raises(ValueError, match=r"weight: expected shape \[8\]"):
        add_layernorm(x, x, p, torch.zeros(7), p, EPS)
    with pytest.raises(TypeError, match="shift: expected a torch"):
        add_layernorm(x, x, p, p, None, EPS)
    with pytest.raises(TypeError, match="out: expected dtype"):
        add_layernorm(x, x, p, p, p, EPS, out=x.double())
    with pytest.raises(ValueError, match="residual: expected device cpu, found meta"):
        add_layernorm(x, x.to("meta"), p, p, p, EPS)
    one = torch.zeros(1)
    with pytest.raises(ValueError, match=r"head_weight: expected shape \[8\]"):
        add_layernorm_dot(x, x, p, p, p, EPS, p[None, 0], one)
    with pytest.raises(ValueError, match=r"head_bias: expected shape \[1\]"):
        add_layernorm_dot(x, x, p, p, p, EPS, p, p)
    with pytest.raises(ValueError, match=r"weights: expected shape \[2\]"):
        add_layernorm_dot(x, x, p, p, p, EPS, p, one, weights=p)
    with pytest.raises(TypeError, match="weights: expected dtype"):
        add_layernorm_dot(x, x, p, p, p, EPS, p, one, weights=p[:2].double())
    ids, table = torch.zeros(2, dtype=torch.int32), torch.zeros(5, 8)
    with pytest.raises(TypeError, match="ids: expected dtype"):
        embed_layernorm(ids.long(), ids, table, table, p, p, p, EPS)
    with pytest.raises(ValueError, match=r"position: expected shape \[5, 8\]"):
        embed_layernorm(ids, ids, table, torch.zeros(5, 9), p, p, p, EPS)
    with pytest.raises(ValueError, match="ids: expected 0 to 4, found 0 to 5"):
        embed_layernorm(ids + torch.tensor([0, 5]).int(), ids, table, table, p, p, p, EPS)
    with pytest.raises(ValueError, match="positions: expected 0 to 4, found -1 to -1"):
        embed_layernorm(ids, ids - 1, table, table, p, p, p, EPS)
    with pytest.raises(ValueError, match="ids: expected device cpu, found meta"):
        embed_layernorm(ids.to("meta"), ids, table, table, p, p, p, EPS)
    with pytest.raises(ValueError, match=r"out: expected shape \[2, 8\]"):
        embed_layernorm(ids, ids, table, table, p, p, p, EPS, out=table)
    with pytest.raises(ValueError, match="ids: expected 0 to -1"):
        embed_layernorm(ids, ids, table[:0], table, p, p, p, EPS, check_ids=False)
