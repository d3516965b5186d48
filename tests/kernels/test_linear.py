import pytest
import torch

from m3fast.kernels import linear as module
from m3fast.kernels import native
from m3fast.kernels.linear import linear
from m3fast.kernels.reference import linear_ref


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9, 16, 17, 20, 33, 64, 100, 256, 257])
@pytest.mark.parametrize(("depth", "outs"), [(1, 1), (5, 3), (40, 100), (128, 129), (1024, 50)])
def test_against_reference_and_float64(path, rng, gap, rows, depth, outs):
    x, weight, bias = torch.randn(rows, depth), torch.randn(outs, depth), torch.randn(outs)
    exact = x.double() @ weight.double().T
    tolerance = 4e-7 * depth**0.5 * 8
    out = torch.full((rows, outs), float("nan"))
    assert linear(x, weight, bias, out=out) is out
    assert gap(out, exact + bias.double()) < tolerance
    assert gap(out, linear_ref(x, weight, bias)) < tolerance
    assert gap(linear(x, weight), exact) < tolerance


def test_deep_rows(path, rng, gap):
    """One task of the native kernel takes fewer weights where a row is long."""
    x, weight = torch.randn(20, 60_000), torch.randn(13, 60_000)
    assert gap(linear(x, weight), x.double() @ weight.double().T) < 2e-3


def test_bf16(path, rng, gap):
    x, weight, bias = (torch.randn(*size).bfloat16() for size in ((9, 64), (5, 64), (5,)))
    exact = x.double() @ weight.double().T + bias.double()
    found = linear(x, weight, bias)
    assert found.dtype == torch.bfloat16
    rounded = gap(exact.bfloat16(), exact)
    assert gap(found, exact) <= 2 * rounded + 1e-6


def test_empty(path):
    assert linear(torch.empty(0, 4), torch.ones(3, 4)).shape == (0, 3)
    assert linear(torch.ones(2, 4), torch.empty(0, 4)).shape == (2, 0)
    assert linear(torch.empty(2, 0), torch.empty(3, 0), torch.ones(3)).tolist() == [[1.0] * 3] * 2


def test_same_bits(path, rng, same_bits):
    if path == "torch":
        pytest.skip("torch's own matter")
    x, weight, bias = torch.randn(20, 256), torch.randn(999, 256), torch.randn(999)
    same_bits(lambda: linear(x, weight, bias))


def test_few_rows_are_native(rng, monkeypatch):
    if not native.available:
        pytest.skip("the extension was not built")
    calls = []
    monkeypatch.setattr(module.torch, "mm", lambda *a, **k: calls.append(len(a[0])))
    for rows in (1, module.FEW_ROWS, module.FEW_ROWS + 1):
        linear(torch.randn(rows, 8), torch.randn(4, 8))
    assert calls == [module.FEW_ROWS + 1]


def test_gradient(rng):
    x = torch.randn(4, 8, requires_grad=True)
    weight, bias = torch.randn(5, 8, requires_grad=True), torch.randn(5, requires_grad=True)
    linear(x, weight, bias).sum().backward()
    assert torch.allclose(x.grad, weight.sum(0).expand(4, 8))
    assert bias.grad.tolist() == [4.0] * 5


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(x=[1.0]), TypeError, "x: "),
        (dict(x=torch.ones(4)), ValueError, "x: "),
        (dict(x=torch.ones(2, 4).int()), TypeError, "x: "),
        (dict(weight=torch.ones(3, 5)), ValueError, "weight: "),
        (dict(weight=torch.ones(3, 4).double()), TypeError, "weight: "),
        (dict(bias=torch.ones(4)), ValueError, "bias: "),
        (dict(bias=torch.ones(3).bfloat16()), TypeError, "bias: "),
        (dict(out=torch.ones(2, 4)), ValueError, "out: "),
        (dict(out=torch.ones(2, 3).double()), TypeError, "out: "),
    ],
)
def test_bad_arguments(change, error, message):
    arguments = dict(x=torch.ones(2, 4), weight=torch.ones(3, 4), bias=torch.ones(3)) | change
    with pytest.raises(error, match=message):
        linear(**arguments)
