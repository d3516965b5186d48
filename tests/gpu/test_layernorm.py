import pytest
import torch
import torch.nn.functional as F
from nearness import as_near

from m3fast.kernels import dispatch
from m3fast.kernels.gpu.layernorm import (
    candidates,
    default_config,
    launch_add_layernorm,
    launch_embed_layernorm,
)
from m3fast.kernels.layernorm import add_layernorm, add_layernorm_dot, embed_layernorm
from m3fast.kernels.reference import (
    add_layernorm_dot_ref,
    add_layernorm_ref,
    embed_layernorm_ref,
)

EPS = 1e-5
NAN = float("nan")
LENGTHS = [1, 2, 31, 33]  # tiles have 1 or 4 rows
WIDTHS = [1, 3, 64, 100, 1024, 1031, 4096]


def parameters(width, dtype, device, n=3):
    return [torch.randn(width, device=device).to(dtype) for _ in range(n)]


def spread(width, device):
    """Keeps a few columns apart: with a variance near 0 a norm is all rounding."""
    return 4.0 * torch.arange(width, device=device) if width < 16 else 0.0


def pair(rows, width, dtype, device, mean=0.0):
    x = torch.randn(rows, width, device=device) + mean + spread(width, device)
    return x.to(dtype), torch.randn(rows, width, device=device).to(dtype)


def rounding(y, x=None):
    """What some eight fp32 roundings may come to in rows like `y`, sums of 4,096 terms included.

    Given the rows `x` before their mean is taken away: three columns may be that alike.
    """
    alike = 1.0 if x is None else (x.abs().amax(1) / (x.var(1, correction=0) + EPS).sqrt()).max()
    return 8 * torch.finfo(torch.float32).eps * max(1.0, y.abs().max().item(), float(alike))


def wide(*tensors):
    return [t.double() for t in tensors]


@pytest.mark.parametrize("width", WIDTHS)
def test_add(device, rng, gap, dtype, width):
    # A mean far from 0: E[y²] - E[y]² would fail here.
    x, residual = pair(7, width, dtype, device, mean=30.0)
    given = parameters(width, dtype, device)
    exact = add_layernorm_ref(*wide(x, residual, *given), EPS)
    plain = F.layer_norm(x + given[0] + residual, (width,), *given[1:], EPS)
    for bias, eps in ((given[0], EPS), (None, 0.5)):
        if bias is None:
            exact = add_layernorm_ref(*wide(x, residual), None, *wide(*given[1:]), eps)
            plain = F.layer_norm(x + residual, (width,), *given[1:], eps)
        out = torch.full_like(x, NAN)
        found = add_layernorm(x, residual, bias, *given[1:], eps, out=out)
        assert found is out
        # With three columns near 30 a variance can be all rounding.
        assert gap(out, exact) <= (2 * gap(plain, exact) if dtype != torch.float32 else 1e-4)


def test_add_is_accurate(device, rng, gap):
    x, residual = pair(50, 1024, torch.float32, device)
    given = parameters(1024, torch.float32, device)
    exact = add_layernorm_ref(*wide(x, residual, *given), EPS)
    assert gap(add_layernorm(x, residual, *given, EPS), exact) < rounding(exact)


@pytest.mark.parametrize("rows", LENGTHS)
def test_add_at_every_length(device, rng, gap, dtype, rows):
    x, residual = pair(rows, 96, dtype, device)
    given = parameters(96, torch.float32, device)  # fp32 parameters go with any dtype
    exact = add_layernorm_ref(*wide(x, residual, *given), EPS)
    plain = F.layer_norm(x.float() + residual + given[0], (96,), *given[1:], EPS).to(dtype)
    for many in (False, True):
        guarded = torch.full((rows + 8, 96), NAN, dtype=dtype, device=device)
        config = default_config(80, 96, many)
        launch_add_layernorm(x, residual, *given, EPS, guarded[:rows], config=config)
        assert gap(guarded[:rows], exact) <= max(2 * gap(plain, exact), rounding(exact))
        assert guarded[rows:].isnan().all()


@pytest.mark.parametrize("alias", ["x", "residual"])
def test_in_place(device, rng, alias):
    x, residual = pair(9, 100, torch.float32, device)
    given = parameters(100, torch.float32, device)
    expected = add_layernorm(x, residual, *given, EPS)
    target = {"x": x, "residual": residual}[alias]
    assert add_layernorm(x, residual, *given, EPS, out=target) is target
    assert torch.equal(target, expected)


@pytest.mark.parametrize("many", [False, True])
def test_nan_stays_in_its_row(device, rng, many):
    x, residual = pair(6, 64, torch.float16, device)
    given = parameters(64, torch.float16, device)
    head = (torch.randn(64, device=device), torch.ones(1, device=device))
    clean, out = torch.empty_like(x), torch.empty_like(x)
    dots = [torch.empty(6, device=device) for _ in range(2)]
    config = default_config(80, 64, many)
    launch_add_layernorm(x, residual, *given, EPS, clean, (*head, dots[0]), config)
    x[2, 5], x[4, 0] = NAN, float("inf")
    launch_add_layernorm(x, residual, *given, EPS, out, (*head, dots[1]), config)
    hurt = torch.tensor([False, False, True, False, True, False], device=device)
    assert out[hurt].isnan().all() and dots[1][hurt].isnan().all()
    assert torch.equal(out[~hurt], clean[~hurt]) and torch.equal(dots[1][~hurt], dots[0][~hurt])


@pytest.mark.parametrize("width", [3, 100, 1024])
def test_dot(device, rng, gap, dtype, width):
    x, residual = pair(33, width, dtype, device)
    given = parameters(width, dtype, device)
    h = torch.randn(width, device=device).to(dtype)
    middle = (add_layernorm_ref(x, residual, *given, EPS).float() @ h.float()).median()
    head = (h, -middle[None].to(dtype))  # half of the weights are 0
    out, weights = torch.full_like(x, NAN), torch.full((33,), NAN, device=device)
    found = add_layernorm_dot(x, residual, *given, EPS, *head, out=out, weights=weights)
    assert found[0] is out and found[1] is weights
    y, expected = add_layernorm_dot_ref(x, residual, *given, EPS, *head)
    bound = max(2 * torch.finfo(dtype).eps * max(1, y.abs().max().item()), rounding(y))
    assert gap(out, y) <= bound
    # of its own rounded rows, exactly relu(y·h + b) but for fp32 sums
    exact = torch.relu(out.double() @ head[0].double() + head[1].double())
    assert gap(weights, exact) <= 1e-5 * width**0.5
    assert (weights == 0).any() and (weights > 0).any()
    if dtype == torch.float32:
        assert gap(weights, expected) <= 1e-5 * width**0.5
    # compiled apart, so not the same bits everywhere
    bare = add_layernorm(x, residual, *given, EPS)
    assert gap(bare, out) <= bound
    fresh = add_layernorm_dot(x, residual, *given, EPS, *head)
    assert torch.equal(fresh[0], out) and torch.equal(fresh[1], weights)


def embedding(width, rows, dtype, device):
    ids = torch.randint(0, 50, (rows,), dtype=torch.int32, device=device)
    positions = torch.randint(0, 20, (rows,), dtype=torch.int32, device=device)
    word = (torch.randn(50, width, device=device) + spread(width, device)).to(dtype)
    position = torch.randn(20, width, device=device).to(dtype)
    return ids, positions, word, position, *parameters(width, dtype, device)


@pytest.mark.parametrize("width", WIDTHS[1:])
@pytest.mark.parametrize("many", [False, True])
def test_embed(device, rng, gap, dtype, width, many):
    args = embedding(width, 9, dtype, device)
    ids, positions, word, position, type_row, weight, shift = args
    exact = embed_layernorm_ref(ids, positions, *wide(*args[2:]), EPS)
    total = word[ids.long()] + position[positions.long()] + type_row
    plain = F.layer_norm(total, (width,), weight, shift, EPS)
    bound = max(2 * gap(plain, exact), rounding(exact, total.double()))
    out = torch.full_like(total, NAN)
    launch_embed_layernorm(*args, EPS, out, default_config(80, width, many))
    assert gap(out, exact) <= bound
    target = torch.full_like(total, NAN)
    found = embed_layernorm(*args, EPS, out=target, check_ids=False)
    assert found is target
    assert gap(target, exact) <= bound


def test_embed_reads_no_row_that_is_not_there(device, rng):
    ids, positions, *tables = embedding(64, 4, torch.float32, device)
    ids[:] = torch.tensor([-1, 50, -(2**31), 2**31 - 1])
    positions[:] = torch.tensor([2**31 - 1, -1, 20, 0])
    with pytest.raises(ValueError, match="ids: 0 to 49"):
        embed_layernorm(ids, positions, *tables, EPS)
    out = embed_layernorm(ids, positions, *tables, EPS, check_ids=False)
    near = embed_layernorm(ids.clamp(0, 49), positions.clamp(0, 19), *tables, EPS)
    assert torch.equal(out, near)
    with pytest.raises(ValueError, match="ids: 0 to -1"):
        embed_layernorm(ids, positions, tables[0][:0], *tables[1:], EPS, check_ids=False)


def test_empty(device):
    x = torch.empty(0, 8, device=device)
    p, one = torch.zeros(8, device=device), torch.zeros(1, device=device)
    assert add_layernorm(x, x, p, p, p, EPS).shape == (0, 8)
    y, weights = add_layernorm_dot(x, x, None, p, p, EPS, p, one)
    assert y.shape == (0, 8) and weights.shape == (0,)
    args = embedding(8, 0, torch.float32, device)
    assert embed_layernorm(*args, EPS, check_ids=False).shape == (0, 8)


def test_what_the_kernel_does_not_take(device, rng, gap, monkeypatch):
    monkeypatch.setattr(dispatch, "_said", set())
    given = parameters(8, torch.float64, device)
    x, residual = pair(3, 8, torch.float64, device)
    with pytest.warns(RuntimeWarning, match="add_layernorm: .* float64"):
        add_layernorm(x, residual, *given, EPS)
    x, residual = pair(3, 16, torch.float32, device)
    given = parameters(8, torch.float32, device)
    with pytest.warns(RuntimeWarning, match="not contiguous"):
        out = add_layernorm(x[:, ::2], residual[:, :8], *given, EPS)
    assert gap(out, add_layernorm_ref(x[:, ::2], residual[:, :8], *given, EPS)) < 3e-6
    x, residual = pair(1, 4097, torch.float32, device)
    with pytest.warns(RuntimeWarning, match="more than 4096 columns"):
        add_layernorm(x, residual, *parameters(4097, torch.float32, device), EPS)


@pytest.mark.gpu
@pytest.mark.parametrize("width", [64, 1024, 4096])
def test_full_size(device, rng, width):
    x, residual = pair(5000, width, torch.bfloat16, device)
    given = parameters(width, torch.bfloat16, device)
    exact = add_layernorm_ref(*wide(x, residual, *given), EPS)
    plain = F.layer_norm(x + given[0] + residual, (width,), *given[1:], EPS)
    shipped = [default_config(90, width, many) for many in (False, True)]
    for config in [*shipped, *candidates(90, width)[::3]]:
        out = torch.full_like(x, NAN)
        launch_add_layernorm(x, residual, *given, EPS, out, config=config)
        as_near(out, exact, plain)


@pytest.mark.gpu
def test_full_vocabulary(device, rng):
    word = torch.randn(250_002, 1024, device=device, dtype=torch.bfloat16)
    position = torch.randn(8194, 1024, device=device, dtype=torch.bfloat16)
    ids = torch.randint(0, len(word), (30_000,), dtype=torch.int32, device=device)
    ids[-1] = len(word) - 1
    positions = torch.randint(0, 8194, (30_000,), dtype=torch.int32, device=device)
    args = (ids, positions, word, position, *parameters(1024, torch.bfloat16, device))
    exact = embed_layernorm_ref(ids, positions, *(t.float() for t in args[2:]), EPS)
    as_near(embed_layernorm(*args, EPS), exact, exact.bfloat16())
