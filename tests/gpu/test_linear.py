"""Products of few rows, alone and with the LayerNorm behind them."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from nearness import as_near

from m3fast.kernels import dispatch, linear
from m3fast.kernels.gelu import linear_gelu
from m3fast.kernels.gpu.linear import candidates, launch_linear, linear_parts
from m3fast.kernels.reference import add_layernorm_ref, bias_gelu_ref, linear_ref
from m3fast.kernels.residual import linear_add_layernorm

EPS = 1e-5
NAN = float("nan")
ROWS = [1, 15, 17, 33, dispatch.FEW]
SIZES = [(64, 64), (128, 192), (192, 448), (64, 512)]  # outs, depth; the last in four parts


@pytest.fixture
def half(dtype):
    if dtype == torch.float32:
        pytest.skip("torch multiplies fp32")
    return dtype


def at_rest(device):
    """Nothing under way writes the parameters, as calls with early=True demand."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def product(device, dtype, rows, outs, depth):
    """x, W, b, and x·Wᵀ exactly."""
    x = torch.randn(rows, depth, device=device).to(dtype)
    weight = (torch.randn(outs, depth, device=device) * depth**-0.5).to(dtype)
    bias = torch.randn(outs, device=device).to(dtype)
    exact = linear_ref(x.double(), weight.double())
    at_rest(device)
    return x, weight, bias, exact


def norm(device, dtype, rows, outs):
    """residual, factor, shift, and a head."""
    residual = torch.randn(rows, outs, device=device).to(dtype)
    factor, shift, head = torch.randn(3, outs, device=device).to(dtype)
    head = (head, torch.randn(1, device=device).to(dtype))
    at_rest(device)
    return residual, factor, shift, head


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("outs", "depth"), SIZES)
def test_linear(device, rng, half, rows, outs, depth):
    x, weight, bias, exact = product(device, half, rows, outs, depth)
    guarded = torch.full((rows + 3, outs), NAN, dtype=half, device=device)
    for b in (bias, None):
        with_bias = exact if b is None else exact + bias.double()
        out = linear.linear(x, weight, b, out=guarded[:rows], early=True)
        assert out.data_ptr() == guarded.data_ptr()
        as_near(out, with_bias, F.linear(x, weight, b))
        assert guarded[rows:].isnan().all()
    plain = F.gelu(F.linear(x, weight, bias))
    found = linear_gelu(x, weight, bias, early=True)
    as_near(found, bias_gelu_ref(exact, bias.double()), plain)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("outs", "depth"), SIZES)
def test_add_layernorm(device, rng, half, rows, outs, depth):
    x, weight, bias, exact = product(device, half, rows, outs, depth)
    residual, factor, shift, head = norm(device, half, rows, outs)
    wide = [t.double() for t in (residual, bias, factor, shift)]
    expected = add_layernorm_ref(exact, *wide, EPS)
    plain = F.layer_norm(F.linear(x, weight, bias) + residual, (outs,), factor, shift, EPS)
    given = (x, weight, bias, residual, factor, shift, EPS)
    out, dots = linear_add_layernorm(*given, early=True)
    assert dots is None
    as_near(out, expected, plain)
    found, dots = linear_add_layernorm(*given, head, out=residual, early=True)  # in place
    assert found is residual and dots is not None
    as_near(found, expected, plain)
    exact_dots = torch.relu(found.double() @ head[0].double() + head[1].double())
    assert (dots.double() - exact_dots).abs().max() <= 1e-5 * outs**0.5


@pytest.mark.parametrize("summed", [False, True])
def test_every_config(device, rng, half, summed):
    outs, depth = 1024, 512
    x, weight, bias, exact = product(device, half, 20, outs, depth)
    tried = candidates(outs, depth, summed)
    assert len(tried) > 4 and len({c.parts for c in tried}) == (4 if summed else 1)
    for config in tried[:: 7 if device.type == "cuda" else 20]:
        if summed:
            parts = linear_parts(x, weight, config)
            assert parts.shape == (config.parts, 20, outs)
            assert (parts.double().sum(0) - exact).abs().max() < 1e-5 * exact.abs().max()
        else:
            out = torch.full((20, outs), NAN, dtype=half, device=device)
            launch_linear(x, weight, bias, out, config=config)
            as_near(out, exact + bias.double(), F.linear(x, weight, bias))


def test_what_torch_multiplies(device, rng, monkeypatch):
    """More rows, odd sizes and addresses, fp32, strides, gradients, not early: nothing is said."""
    monkeypatch.setattr(
        "m3fast.kernels.gpu.linear._launch", lambda *_: pytest.fail("launched for few rows")
    )
    few, half = dispatch.FEW, torch.float16
    cases = [(few + 1, 64, 64, half, True), (3, 64, 70, half, True), (3, 70, 64, half, True),
             (3, 64, 64, torch.float32, True), (3, 64, 64, half, False)]  # fmt: skip
    for rows, outs, depth, dtype, early in cases:
        x, weight, bias, exact = product(device, dtype, rows, outs, depth)
        bound = 1e-5 if dtype == torch.float32 else 0.01
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = linear.linear(x, weight, bias, early=early)
        assert (found - exact - bias).abs().max() < bound
    x, weight, bias, exact = product(device, half, 3, 64, 64)
    strided = x.t().contiguous().t()
    shifted = torch.cat([bias[:1], weight.view(-1)])[1:].view(weight.shape)
    for given in ((strided, weight), (x, shifted)):
        found = linear.linear(*given, bias, early=True)
        assert (found - exact - bias).abs().max() < 0.01
    assert linear.linear(x.requires_grad_(), weight, bias, early=True).requires_grad
    assert linear.linear(x[:0], weight, bias, early=True).shape == (0, 64)


def test_nan_stays_in_its_row(device, rng):
    x, weight, bias, _ = product(device, torch.float16, 5, 64, 128)
    residual, factor, shift, head = norm(device, torch.float16, 5, 64)
    given = (weight, bias, residual, factor, shift, EPS, head)
    clean, dots = linear_add_layernorm(x, *given, early=True)
    x[3, 7] = NAN
    hurt, hurt_dots = linear_add_layernorm(x, *given, early=True)
    others = torch.tensor([0, 1, 2, 4], device=device)
    assert hurt[3].isnan().all() and hurt_dots[3].isnan()
    assert torch.equal(hurt[others], clean[others]) and torch.equal(hurt_dots[others], dots[others])


def test_wrong_arguments(device):
    x, weight, bias, _ = product(device, torch.float16, 4, 128, 64)
    residual, factor, shift, head = norm(device, torch.float16, 4, 128)
    given = dict(x=x, weight=weight, bias=bias, residual=residual, norm_weight=factor, shift=shift,
                 eps=EPS, head=head)  # fmt: skip
    for name, bad, said in (
        ("weight", weight[:, :64].repeat(1, 2), "weight: expected shape"),
        ("residual", residual[:3], "residual: expected shape"),
        ("bias", bias[:64], "bias: expected shape"),
        ("shift", shift[:64], "shift: expected shape"),
        ("head", (head[0][:64], head[1]), "head_weight: expected shape"),
        ("out", residual[:2], "out: expected shape"),
    ):
        with pytest.raises(ValueError, match=said):
            linear_add_layernorm(**(given | {name: bad}), early=True)


@pytest.mark.gpu
def test_launches_that_overlap(device, rng, monkeypatch):
    """Kernels that begin early read nothing early: a chain of layers, in turn and overlapping."""
    if dispatch.arch(device) < 90:
        pytest.skip("launches overlap from compute capability 9.0 on")
    from m3fast.kernels.attention import attention_plan, varlen_attention
    from m3fast.kernels.gpu import attention, layernorm
    from m3fast.kernels.gpu import linear as products

    dtype, rows, width = torch.bfloat16, 32, 1024
    layers = []
    for _ in range(6):
        sizes = ((3 * width, width), (width, width), (4 * width, width), (width, 4 * width))
        layers.append([product(device, dtype, rows, *size)[1:3] for size in sizes])
    _, factor, shift, _ = norm(device, dtype, rows, width)
    ends = torch.tensor([0, 20, 29, 32], dtype=torch.int32)
    plan = attention_plan(ends.numpy(), 20, 64, dtype, device)
    start = torch.randn(rows, width, device=device).to(dtype)

    def run(x):
        for qkv, out, up, down in layers:
            packed = linear.linear(x, *qkv, early=True).view(rows, 3, 16, 64)
            attended = varlen_attention(packed, ends, 20, plan=plan, early=True)
            x, _ = linear_add_layernorm(attended, *out, x, factor, shift, EPS, early=True)
            inner = linear_gelu(x, *up, early=True)
            x, _ = linear_add_layernorm(inner, *down, x, factor, shift, EPS, early=True)
        return x

    with monkeypatch.context() as patch:
        for module in (attention, layernorm, products):
            patch.setattr(module, "overlap", lambda *_, **__: {"PDL": False})
        expected = run(start)
    torch.cuda.synchronize()  # nothing under way writes the weights
    for _ in range(50):
        assert torch.equal(run(start), expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run(start)
    for _ in range(50):
        graph.replay()
        assert torch.equal(found, expected)


@pytest.mark.gpu
def test_gelu_in_the_product(device, rng):
    """cuBLASLt's, by tanh: nearer to the exact one than a product that is rounded before it."""
    x, weight, bias, exact = product(device, torch.bfloat16, 300, 4096, 1024)
    expected = bias_gelu_ref(exact, bias.double())
    found = linear_gelu(x, weight, bias).double() - expected
    plain = F.gelu(F.linear(x, weight, bias)).double() - expected
    assert found.abs().max() <= plain.abs().max()
    assert found.square().mean() <= plain.square().mean()
