import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import ndtr

from m3fast.kernels.gelu import bias_gelu_
from m3fast.kernels.reference import bias_gelu_ref


def test_error_bound(path):
    """At most 2e-7·max(1, |x|) from float64, over the whole range."""
    near = torch.linspace(-12, 12, 400_001)
    far = torch.tensor([1e-30, -1e-30, 1e-3, -1e-3, 30.0, -30.0, 1e20, -1e20])
    x = torch.cat([near, far])[None]
    wide = x.double().numpy()
    out = bias_gelu_(x.clone(), torch.zeros(x.shape[1])).double().numpy()
    assert (np.abs(out - wide * ndtr(wide)) / np.maximum(1, np.abs(wide))).max() <= 2e-7


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 7), (65, 100), (33, 4096)])
def test_bias(path, rng, gap, rows, width):
    x, bias = torch.randn(rows, width) * 3, torch.randn(width)
    expected = bias_gelu_ref(x, bias)
    wide = x.double().numpy() + bias.double().numpy()
    out = bias_gelu_(x, bias)
    assert out is x
    assert gap(out, expected) < 2e-6
    assert gap(out, wide * ndtr(wide)) < 2e-6


@pytest.mark.parametrize("bias_dtype", [torch.bfloat16, torch.float32])
def test_bf16(path, rng, gap, bias_dtype):
    x, bias = (torch.randn(40, 100) * 3).bfloat16(), torch.randn(100).bfloat16()
    exact = bias_gelu_ref(x.float(), bias.float())
    plain = F.gelu(x + bias)
    assert gap(bias_gelu_(x, bias.to(bias_dtype)), exact) <= 2 * gap(plain, exact)


def test_not_finite(path):
    x = torch.tensor([[float("nan"), float("inf"), 1.0]])
    out = bias_gelu_(x, torch.zeros(3))[0]
    assert out[0].isnan()
    assert out[1] == float("inf")
    for value in (float("nan"), float("inf")):
        x = torch.full((1, 9), value, dtype=torch.bfloat16)
        out = bias_gelu_(x, torch.zeros(9))
        assert torch.equal(out.isnan(), x.isnan())
    # All bits set: rounding such a NaN to bf16 as if it were a number would give -0.
    bias = torch.tensor([0x7FFFFFFF] * 9, dtype=torch.int32).view(torch.float32)
    assert bias_gelu_(torch.zeros(1, 9, dtype=torch.bfloat16), bias).isnan().all()


def test_empty(path):
    assert bias_gelu_(torch.empty(0, 4), torch.zeros(4)).shape == (0, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits(path, rng, same_bits, dtype):
    x, bias = torch.randn(300, 1000).to(dtype), torch.randn(1000)
    same_bits(lambda: bias_gelu_(x.clone(), bias))


def test_gradient_leaves_the_input_alone(rng, gap):
    x = torch.randn(3, 5, requires_grad=True)
    before, bias = x.detach().clone(), torch.randn(5)
    out = bias_gelu_(x, bias)
    out.sum().backward()
    assert torch.equal(x, before)
    other = before.clone().requires_grad_()
    bias_gelu_ref(other, bias).sum().backward()
    assert gap(x.grad, other.grad) < 1e-6


def test_bad_arguments(path):
    x = torch.zeros(2, 8)
    with pytest.raises(ValueError, match=r"bias: expected shape \[8\], found \[7\]"):
        bias_gelu_(x, torch.zeros(7))
    with pytest.raises(TypeError, match="bias: expected dtype"):
        bias_gelu_(x, torch.zeros(8, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="x: expected 2 dimensions"):
        bias_gelu_(torch.zeros(8), torch.zeros(8))
    with pytest.raises(TypeError, match="x: expected dtype"):
        bias_gelu_(x.int(), torch.zeros(8))
