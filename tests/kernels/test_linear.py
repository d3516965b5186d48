import pytest
import torch

from m3fast.kernels import native
from m3fast.kernels.gelu import linear_gelu
from m3fast.kernels.linear import PackedWeight, has_kernel, linear, pack_weight, unpack_weight
from m3fast.kernels.reference import bias_gelu_ref, linear_ref

# Around a tile's 6 rows, a task's 192 rows, a panel's 8, 16 and 64 outputs, a chain's 256 and 512.
ROWS = [1, 2, 5, 6, 7, 13, 20, 64, 191, 192, 193, 577]
SIZES = [
    (2, 1), (6, 3), (40, 100), (128, 129), (256, 64), (257, 17), (514, 17), (1024, 50), (1030, 65),
]  # fmt: skip


def packed(weight, path):
    """`weight` packed, also for instructions that the library itself leaves to torch."""
    if path != "portable":
        return pack_weight(weight)
    lib = native.library()
    (outs, depth), panel = weight.shape, lib.linear_panel()
    data = torch.full((-(-outs // panel) * panel * depth,), float("nan"))
    lib.pack_weight(weight, data, 2)
    return PackedWeight(data, (outs, depth), panel)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("depth", "outs"), SIZES)
def test_against_float64(path, rng, gap, rows, depth, outs):
    if path == "torch":
        pytest.skip("nothing is packed")
    x, weight, bias = torch.randn(rows, depth), torch.randn(outs, depth), torch.randn(outs)
    exact = x.double() @ weight.double().T
    tolerance = 6.4e-6 * depth**0.5  # twice the largest of a million sums of 256
    given = packed(weight, path)
    assert isinstance(given, PackedWeight) and given.shape == (outs, depth)
    out = torch.full((rows, outs), float("nan"))
    assert linear(x, given, bias, out=out) is out
    assert gap(out, exact + bias.double()) < tolerance
    assert gap(linear(x, given), exact) < tolerance
    found = linear_gelu(x, given, bias)
    assert gap(found, bias_gelu_ref(exact, bias.double())) < tolerance + 2e-7 * exact.abs().max()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("depth", "outs"), SIZES)
def test_bf16_against_float64(rng, rows, depth, outs):
    x, weight = torch.randn(rows, depth).bfloat16(), torch.randn(outs, depth).bfloat16()
    bias = torch.randn(outs).bfloat16()
    given = pack_weight(weight)
    if not isinstance(given, PackedWeight):
        pytest.skip("no product of bf16 here, or torch uses AMX")
    exact = x.double() @ weight.double().T
    for found, true in (
        (linear(x, given, bias), exact + bias.double()),
        (linear(x, given), exact),
        (linear_gelu(x, given, bias), bias_gelu_ref(exact, bias.double())),
    ):
        assert found.dtype == torch.bfloat16
        # Half a unit in the last place of 8 bits, and what fp32 sums lose where terms cancel.
        assert ((found - true).abs() <= true.abs() / 256 + 4e-7 * depth**0.5 * 8).all()


def test_packing_is_a_permutation(path, rng):
    """Every weight once, and zeros."""
    if path == "torch":
        pytest.skip("nothing is packed")
    weight = torch.randn(37, 10)
    given = packed(weight, path)
    kept = given.data[given.data != 0].sort().values
    assert torch.equal(kept, weight.flatten().sort().values)
    assert given.data.numel() % (10 * native.library().linear_panel()) == 0
    assert torch.equal(unpack_weight(given), weight)
    half = pack_weight(weight.bfloat16())
    assert torch.equal(unpack_weight(half), weight.bfloat16())


def test_torch_where_there_is_no_kernel(path, rng):
    weight = torch.randn(8, 6)
    fp32, odd = has_kernel(weight), has_kernel(weight[:, :5].bfloat16().contiguous())
    assert fp32 == (path not in ("torch", "portable")) and not odd
    assert has_kernel(weight.bfloat16()) in (False, path == "avx512bf16")
    for other in (weight.double(), weight.half(), weight.t(), weight[:0], weight[:, :0]):
        assert pack_weight(other) is other
    x, bias = torch.randn(3, 6), torch.randn(8)
    assert torch.allclose(linear(x, weight, bias), linear_ref(x, weight, bias), atol=1e-5)
    assert torch.allclose(
        linear_gelu(x, weight, bias), bias_gelu_ref(linear_ref(x, weight), bias), atol=1e-5
    )
    wide = linear(x.bfloat16(), weight.bfloat16(), bias)
    assert wide.dtype == torch.bfloat16
    assert torch.allclose(wide.float(), linear_ref(x, weight, bias), atol=0.2)


def test_empty(path):
    given = torch.ones(3, 4) if path == "torch" else packed(torch.ones(3, 4), path)
    assert linear(torch.empty(0, 4), given).shape == (0, 3)
    assert linear(torch.ones(2, 4), torch.empty(0, 4)).shape == (2, 0)
    assert linear(torch.empty(2, 0), torch.empty(3, 0), torch.ones(3)).tolist() == [[1.0] * 3] * 2


def test_strided_rows(path, rng):
    weight, x = torch.randn(9, 6), torch.randn(6, 5).t()
    given = weight if path == "torch" else packed(weight, path)
    assert torch.allclose(linear(x, given), x @ weight.T, atol=1e-5)


def test_not_a_number(path, rng):
    """It stays in its row."""
    if path == "torch":
        pytest.skip("torch's own matter")
    x, given = torch.randn(20, 64), packed(torch.randn(33, 64), path)
    before = linear(x, given)
    x[7, 11], x[8, 1] = float("nan"), float("inf")
    after = linear(x, given)
    assert after[7].isnan().all() and not after[8].isfinite().any()
    keep = [i for i in range(20) if i not in (7, 8)]
    assert torch.equal(before[keep], after[keep])


def test_same_bits(path, rng, same_bits):
    if path == "torch":
        pytest.skip("torch's own matter")
    x, given, bias = torch.randn(200, 600), packed(torch.randn(999, 600), path), torch.randn(999)
    same_bits(lambda: linear(x, given, bias))


def test_rows_do_not_depend_on_each_other(path, rng):
    """A text's result is that of the text alone, whatever else is in the batch."""
    if path == "torch":
        pytest.skip("torch's own matter")
    x, given = torch.randn(300, 512), packed(torch.randn(130, 512), path)
    whole = linear(x, given)
    for first, last in ((0, 1), (5, 12), (190, 300)):
        assert torch.equal(linear(x[first:last], given), whole[first:last])


def test_gradient(rng):
    x = torch.randn(4, 8, requires_grad=True)
    weight, bias = torch.randn(5, 8, requires_grad=True), torch.randn(5, requires_grad=True)
    linear(x, weight, bias).sum().backward()
    wide = weight.detach().double()
    # Sums of five, in any order: four roundings of at most the sum of sizes.
    assert ((x.grad - wide.sum(0)).abs() <= 4 * 2**-24 * wide.abs().sum(0)).all()
    assert bias.grad.tolist() == [4.0] * 5
    given = pack_weight(weight.detach())
    if isinstance(given, PackedWeight):
        with pytest.raises(TypeError, match="weight: expected a tensor for a gradient"):
            linear(x, given)
        with torch.no_grad():
            linear(x, given)


def test_packed_for_other_instructions(rng):
    given = pack_weight(torch.randn(5, 8))
    if not isinstance(given, PackedWeight):
        pytest.skip("nothing is packed")
    before = native.library().cpu_path()
    native.library().cpu_path("portable")
    try:
        with pytest.raises(ValueError, match="packed for other instructions"):
            linear(torch.randn(3, 8), given)
    finally:
        native.library().cpu_path(before)


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
@pytest.mark.parametrize("pack", [False, True])
def test_bad_arguments(change, error, message, pack):
    arguments = dict(x=torch.ones(2, 4), weight=torch.ones(3, 4), bias=torch.ones(3)) | change
    if pack and (arguments["weight"].dtype != torch.float32 or not has_kernel(arguments["weight"])):
        pytest.skip("nothing is packed")
    if pack:
        arguments["weight"] = pack_weight(arguments["weight"])
    with pytest.raises(error, match=message):
        linear(**arguments)


def test_gelu_wants_a_packed_weight():
    with pytest.raises(TypeError, match="gelu: expected a packed weight"):
        linear(torch.ones(2, 4), torch.ones(3, 4), gelu=True)
    with pytest.raises(TypeError, match="weight: "):
        pack_weight([1.0])
    with pytest.raises(ValueError, match="weight: "):
        pack_weight(torch.ones(3))
