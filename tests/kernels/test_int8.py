import pytest
import torch

from m3fast.kernels import native
from m3fast.kernels.int8 import (
    Int8Rows,
    Int8Table,
    empty_rows,
    group,
    holds,
    linear_gelu_int8,
    linear_int8,
    pack_int8,
    quantize_rows,
    quantize_table,
    stacked,
    times,
    unpack_int8,
)
from m3fast.kernels.layernorm import add_layernorm, embed_layernorm
from m3fast.kernels.layernorm_int8 import add_layernorm_int8, embed_layernorm_int8
from m3fast.kernels.linear import linear
from m3fast.kernels.reference_int8 import linear_int8_ref, quantize_rows_ref

# Around a tile's 5, 6 and 16 rows, a block's 96, a panel's 8, 16 and 64 outputs, four bytes of a
# step and 64 of a tile's row, a group's 128 and 512 columns.
ROWS = [1, 5, 6, 7, 15, 16, 17, 31, 32, 33, 95, 96, 97, 193]
OUTS = [1, 15, 16, 17, 63, 64, 65, 130]
DEPTHS = [1, 3, 4, 5, 63, 64, 65, 127, 129, 511, 512, 513, 1500]
# Each of these once, a step of one and a step of another.
SIZES = [(r, OUTS[(3 * i) % 8], DEPTHS[(5 * i) % 13]) for i, r in enumerate(ROWS)]
WIDTHS = [1, 3, 63, 64, 65, 128, 129, 512, 513, 1030]
EPS = 1e-5
UNIT = 2.0**-24


def top():
    lib = native.library()
    return 2 ** (lib.int8_bits() if lib else 8) - 1


def quantized_ref(x):
    lib = native.library()
    return quantize_rows_ref(x, lib.int8_bits() if lib else 8, group())


def of_bytes(u, scale, zero):
    """Rows of these bytes, one scale and one zero for all groups of a row; padding is 255."""
    rows = empty_rows(*u.shape)
    rows.data.fill_(255)[: len(u), : u.shape[1]] = u
    rows.scales[..., 0], rows.scales[..., 1] = scale[:, None], -(scale * zero)[:, None]
    return rows


def table(outs, depth):
    return quantize_table(torch.randn(outs, depth))


def read(rows):
    """The bytes that count, and the scales."""
    return rows.data[: len(rows), : rows.width], rows.scales


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(read(a), read(b), strict=True))


def wide(scales, which, width):
    """That number of a column's group, float64 [T, width]."""
    return scales[..., which].repeat_interleave(group(), 1)[:, :width].double()


def near_tie(exact):
    """Whether numbers of up to 255 lie as near to a half as a few roundings move them."""
    return (exact - exact.floor() - 0.5).abs() < 8 * UNIT * 256


def within_half_a_step(rows, exact, more=0.0):
    """Whether bytes are off by half their scale, and fp32's rounding, and `more`."""
    scale = wide(rows.scales, 0, rows.width)
    lost = (rows.float().double() - exact.double()).abs()
    return bool((lost <= scale * (0.5 + 1e-4) + more).all())


def rows_of_all_kinds(width):
    """Ordinary and strange, the last three not finite somewhere."""
    x = torch.randn(13, width)
    x[1] = 0
    x[2] = 3.5
    x[3] = -0.25
    x[4] = -x[4].abs() - 2
    x[5] = x[5].abs() + 100
    x[6] *= 10 ** torch.linspace(-30, 37, width)
    x[7] *= 1e-20
    x[8] *= 1e-38
    x[9, 0] = 1e4
    x[10, width // 2], x[11, -1], x[12, 0] = float("nan"), float("inf"), -float("inf")
    return x


@pytest.mark.parametrize("width", WIDTHS)
def test_rows_against_reference(int8_path, rng, width):
    x = rows_of_all_kinds(width)
    for given in (x, x.bfloat16()):
        rows = quantize_rows(given)
        assert len(rows) == 13 and rows.width == width
        (found, scales), (u, expected) = read(rows), quantized_ref(given)
        odd = expected[..., 1].isnan()
        assert torch.equal(scales[..., 1].isnan(), odd)
        assert odd.any(1).tolist() == [False] * 10 + [True] * 3
        assert torch.allclose(scales[..., 0][~odd], expected[..., 0][~odd], rtol=4 * UNIT, atol=0)
        # A near tie may go the other way, of a group's zero or of a byte.
        low = [part.amin(1).clamp(max=0) for part in given.double().split(group(), 1)]
        alike = torch.isclose(scales, expected, rtol=4 * UNIT, atol=0).all(-1)
        assert (alike | odd | near_tie(-torch.stack(low, 1) / scales[..., 0])).all()
        fine = alike.repeat_interleave(group(), 1)[:, :width]
        exact = (given.double() - wide(scales, 1, width)) / wide(scales, 0, width)
        off = (found.int() - u.int()).abs()[fine]
        assert off.max() <= 1 and near_tie(exact[fine][off > 0]).all()
        assert within_half_a_step(Int8Rows(rows.data[:10], scales[:10], width), given[:10], 1e-30)
        assert found[:10].max() <= top() and (found[1] == 0).all()


def test_rows_use_all_bits(int8_path):
    x = torch.tensor([[0.0, 1.0], [-1.0, 0.0], [-3.0, 1.0], [2.0, 5.0], [-5.0, -2.0]])
    rows, t = quantize_rows(x), top()
    assert read(rows)[0].tolist() == [
        [0, t], [0, t], [0, t], [round(0.4 * t), t], [0, t - round(0.4 * t)],
    ]  # fmt: skip
    assert torch.allclose(rows.float(), x, atol=2.6 / t)


def test_rows_into_what_there_is(int8_path, rng):
    x, space = torch.randn(20, 70), empty_rows(20, 70)
    assert quantize_rows(x, space) is space
    assert same(space, quantize_rows(x))
    assert same(quantize_rows(x.t().contiguous().t()), space)


@pytest.mark.parametrize(("rows", "outs", "depth"), SIZES)
def test_product_is_exact_in_integers(int8_path, rng, gap, rows, outs, depth):
    u = torch.randint(0, top() + 1, (rows, depth), dtype=torch.uint8)
    w = torch.randint(-128, 128, (outs, depth), dtype=torch.int8)
    zero = torch.randint(0, top() + 1, (rows,)).float()
    # Powers of two: each sum but that with the bias is exact in fp32.
    scale, factor = (2.0 ** torch.randint(-3, 4, (n,)).float() for n in (rows, outs))
    bias = torch.randn(outs) * 100
    integers = (u.double() - zero.double()[:, None]) @ w.double().t()
    exact = integers * scale.double()[:, None] * factor.double()
    given, weight = of_bytes(u, scale, zero), pack_int8(Int8Table(w, factor))
    assert weight.shape == (outs, depth) and weight.dtype == torch.int8
    out = torch.full((rows, outs), float("nan"))
    assert linear_int8(given, weight, out=out) is out
    assert torch.equal(out, exact.float())
    with_bias = (exact + bias.double()).float()
    assert torch.equal(linear_int8(given, weight, bias, out=out), with_bias)
    half = torch.full((rows, outs), float("nan"), dtype=torch.bfloat16)
    assert torch.equal(linear_int8(given, weight, bias, out=half), with_bias.bfloat16())
    less = bias.bfloat16()
    again = (exact + less.double()).float().bfloat16()
    assert torch.equal(linear_int8(given, weight, less, out=half), again)


@pytest.mark.parametrize("depth", [4, 130, 1500])
@pytest.mark.parametrize("rows", [7, 97])
def test_extremes_do_not_saturate(int8_path, rows, depth):
    u = torch.full((rows, depth), top(), dtype=torch.uint8)
    u[1, ::2], u[2, 1::2], u[3, 1:] = 0, 0, 0
    w = torch.tensor([[-128], [-127], [127], [0], [1]], dtype=torch.int8).repeat(4, depth)
    w[10, ::2], w[11, 1::2] = -128, -128  # the others of a pair are 127 and 0
    given = of_bytes(u, torch.ones(rows), torch.zeros(rows))
    expected = torch.zeros(rows, 20)
    for a, b in zip(u.split(group(), 1), w.split(group(), 1), strict=True):
        expected += (a.double() @ b.double().t()).float()  # a group's sum is below 2^24
    weight = pack_int8(Int8Table(w, torch.ones(20)))
    assert torch.equal(linear_int8(given, weight, out=torch.empty(rows, 20)), expected)


@pytest.mark.parametrize(("rows", "outs", "depth"), SIZES[::3])
def test_product_against_float64(int8_path, rng, rows, outs, depth):
    x, made, bias = torch.randn(rows, depth) + 0.5, table(outs, depth), torch.randn(outs)
    given, weight = quantize_rows(x), pack_int8(made)
    data, scales = read(given)
    parts = [
        (s[:, :1] * (u.double() @ w.double().t()), s[:, 1:] * w.double().sum(1))
        for u, w, s in zip(
            data.split(group(), 1),
            made.data.split(group(), 1),
            scales.double().unbind(1),
            strict=True,
        )
    ]
    exact = sum(a + b for a, b in parts) * made.scale.double() + bias.double()
    sizes = sum(a.abs() + b.abs() for a, b in parts) * made.scale.double() + bias.abs()
    bound = (4 + 2 * len(parts)) * UNIT * sizes  # roundings of a term and of a sum
    found = linear_int8(given, weight, bias, out=torch.empty(rows, outs))
    assert ((found - exact).abs() <= bound).all()
    reference = linear_int8_ref(data, scales, made.data, made.scale, bias, group())
    assert ((found - reference).abs() <= 2 * bound).all()
    assert torch.equal(linear(x, weight, bias), found)
    half = x.bfloat16()
    assert torch.equal(linear(half, weight, bias), linear(half.float(), weight, bias).bfloat16())


@pytest.mark.parametrize(
    ("rows", "outs", "depth"), [(1, 1, 5), (7, 130, 65), (97, 513, 64), (33, 1030, 600)]
)
def test_gelu(int8_path, rng, rows, outs, depth):
    given, weight = quantize_rows(torch.randn(rows, depth)), pack_int8(table(outs, depth))
    bias = torch.randn(outs)
    weight.scale.mul_(4 / depth**0.5)  # products as far out as the polynomial reaches
    y = linear_int8(given, weight, bias, out=torch.empty(rows, outs))
    exact = torch.nn.functional.gelu(y.double())
    space = empty_rows(rows, outs)
    assert linear_gelu_int8(given, weight, bias, space) is space
    assert space.scales.shape[1] == -(-outs // group())
    assert within_half_a_step(space, exact, 1e-4)
    # Scales are those of the group's range, and no wider.
    assert torch.allclose(space.scales[..., 0], quantized_ref(exact)[1][..., 0], atol=1e-6)
    assert read(space)[0].max() <= top()
    assert same(space, linear_gelu_int8(given, weight, bias.double().float()))


def test_gelu_of_one_output(int8_path, gap):
    """Both ends of a group's range are exact, so one number is: as near as the polynomial."""
    rows = quantize_rows(torch.linspace(-7, 7, 1401)[:, None])
    weight = pack_int8(quantize_table(torch.ones(1, 1)))
    y = linear_int8(rows, weight, out=torch.empty(1401, 1))
    found = linear_gelu_int8(rows, weight, torch.zeros(1)).float()
    assert gap(found, torch.nn.functional.gelu(y.double())) < 3.2e-5


def parameters(width, dtype=torch.float32):
    return [torch.randn(width).to(dtype) for _ in range(3)]


def bytes_of(rows, y):
    """Whether rows are those of y [T, C] in float64, but for what a LayerNorm loses."""
    scales = quantized_ref(y)[1]
    close = torch.allclose(rows.scales[..., 0], scales[..., 0], rtol=1e-4, atol=1e-8)
    return close and within_half_a_step(rows, y, 2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 3, 64, 129, 1030])
def test_add_layernorm(int8_path, rng, gap, width, dtype):
    x, residual = torch.randn(37, width).to(dtype), torch.randn(37, width).to(dtype)
    if width > 1:
        x[:, 0] += 30
    bias, weight, shift = parameters(width, dtype)
    for b in (bias, None):
        given = x, residual, b, weight, shift * 10
        wide = [None if t is None else t.double() for t in given]
        total = wide[0] + wide[1] + (0 if b is None else wide[2])
        plain = torch.nn.functional.layer_norm(total, (width,), wide[3], None, EPS)
        out, rows = torch.full_like(x, float("nan")), empty_rows(37, width)
        found = add_layernorm_int8(*given, EPS, out=out, rows=rows)
        assert found[0] is out and found[1] is rows
        alone = add_layernorm(*given, EPS)
        assert gap(out, alone) <= 64 * torch.finfo(dtype).eps
        # The bytes are those without shift, of sums in fp32 also where `out` is bf16.
        assert bytes_of(rows, plain)


@pytest.mark.parametrize("alias", ["x", "residual"])
def test_add_layernorm_in_place(int8_path, rng, alias):
    given = dict(x=torch.randn(40, 100), residual=torch.randn(40, 100))
    more = (*parameters(100), EPS)
    out, rows = add_layernorm_int8(*given.values(), *more, out=torch.empty(40, 100))
    found, again = add_layernorm_int8(*given.values(), *more, out=given[alias])
    assert found is given[alias] and torch.equal(found, out) and same(rows, again)


def embedding(width, rows, dtype=torch.float32):
    ids = torch.randint(0, 50, (rows,), dtype=torch.int32)
    positions = torch.randint(0, 20, (rows,), dtype=torch.int32)
    return ids, positions, table(50, width), table(20, width), *parameters(width, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [3, 64, 129, 1030])
def test_embed_layernorm(int8_path, rng, gap, width, dtype):
    ids, positions, word, position, *more = given = embedding(width, 65, dtype)
    out = torch.full((65, width), float("nan"), dtype=dtype)
    found, rows = embed_layernorm_int8(*given, EPS, out=out)
    assert found is out
    wide = [t.to(torch.float32) for t in (word, position, *more)]
    assert gap(out, embed_layernorm(ids, positions, *wide, EPS)) <= 64 * torch.finfo(dtype).eps
    total = wide[0].double()[ids.long()] + wide[1].double()[positions.long()] + wide[2].double()
    assert bytes_of(
        rows, torch.nn.functional.layer_norm(total, (width,), wide[3].double(), None, EPS)
    )


def test_a_layernorms_shift_goes_into_the_bias(int8_path, rng, gap):
    """What its rows give with W·shift in the bias is the product with its result."""
    x, made, bias = torch.randn(20, 64), table(48, 64), torch.randn(48)
    weight, shift = torch.ones(64), torch.randn(64) * 20
    y, rows = add_layernorm_int8(x, x, None, weight, shift, EPS, out=torch.empty(20, 64))
    found = linear_int8(
        rows, pack_int8(made), bias + times(made, shift), out=torch.empty(20, 48)
    )
    exact = y.double() @ made.to(torch.float64).t() + bias
    # Half a step for each of 64 columns, all of one sign.
    bound = rows.scales[..., 0].double() * 0.51 * made.to(torch.float64).abs().sum(1) + 1e-3
    assert ((found - exact).abs() <= bound).all()


@pytest.mark.parametrize(("outs", "depth"), [(1, 1), (5, 3), (33, 64), (65, 1030)])
def test_tables(int8_path, rng, gap, outs, depth):
    weight = torch.randn(outs, depth)
    weight[outs // 2] *= 1e-30
    if outs > 1:
        weight[0] = 0
    made = quantize_table(weight)
    assert made.shape == (outs, depth) and made.data.dtype == torch.int8
    lost = (made.to(torch.float64) - weight.double()).abs()
    assert (lost <= made.scale.double()[:, None] * (0.5 + 1e-5)).all()
    assert made.data.int().abs().max() == 127
    assert outs == 1 or made.scale[0] == 0
    vector = torch.randn(depth)
    sizes = made.to(torch.float64).abs() @ vector.double().abs()
    exact = made.to(torch.float64) @ vector.double()
    assert ((times(made, vector) - exact).abs() <= UNIT * (depth**0.5 + 8) * sizes).all()
    assert torch.equal(unpack_int8(pack_int8(made)), made.to(torch.float32))
    assert torch.equal(made[torch.tensor([outs - 1, 0])], made.to(torch.float32)[[outs - 1, 0]])
    both = stacked([made, made])
    assert both.shape == (2 * outs, depth)
    assert torch.equal(both.to(torch.float32), made.to(torch.float32).repeat(2, 1))
    assert stacked([made]) is made
    assert quantize_table(weight.bfloat16()).scale.dtype == torch.float32


def test_what_eight_bits_hold(rng):
    weight = torch.randn(50, 256)
    assert holds(quantize_table(weight), weight)
    assert holds(quantize_table(weight.bfloat16()), weight.bfloat16())
    weight[:, 3] *= 60
    assert not holds(quantize_table(weight), weight)
    assert holds(quantize_table(torch.zeros(3, 4)), torch.zeros(3, 4))
    assert quantize_table(torch.zeros(3, 4)).data.abs().max() == 0


def test_not_a_number(int8_path, rng):
    """It stays in its row."""
    x, weight, bias = torch.randn(120, 600), pack_int8(table(33, 600)), torch.randn(33)
    before, gelu_before = linear(x, weight, bias), linear_gelu_int8(quantize_rows(x), weight, bias)
    x[7, 11], x[8, 599], x[100, 0] = float("nan"), float("inf"), -float("inf")
    after, rows = linear(x, weight, bias), quantize_rows(x)
    gelu = linear_gelu_int8(rows, weight, bias)
    keep = torch.ones(120, dtype=torch.bool)
    keep[[7, 8, 100]] = False
    for found in (after, gelu.float()):
        assert found[~keep].isnan().all() and found[keep].isfinite().all()
    assert torch.equal(before[keep], after[keep])
    assert torch.equal(gelu_before.float()[keep], gelu.float()[keep])
    y = add_layernorm_int8(x, x, None, *parameters(600)[:2], EPS, out=torch.empty_like(x))
    for found in (y[0], y[1].float()):
        assert found[~keep].isnan().all() and found[keep].isfinite().all()


def test_same_bits(int8_path, rng, same_bits):
    if int8_path == "torch":
        pytest.skip("torch's own matter")
    x, made, bias = torch.randn(130, 600), table(700, 600), torch.randn(700)
    rows, weight = quantize_rows(x), pack_int8(made)
    same_bits(lambda: linear_int8(rows, weight, bias, out=torch.empty(130, 700)))
    few = quantize_rows(x[:3])
    same_bits(lambda: linear_int8(few, weight, bias, out=torch.empty(3, 700)))
    same_bits(lambda: linear_gelu_int8(rows, weight, bias).float())
    same_bits(lambda: quantize_rows(x).float())
    given = parameters(600)
    same_bits(lambda: add_layernorm_int8(x, x, *given, EPS, out=torch.empty_like(x))[1].float())
    same_bits(lambda: unpack_int8(pack_int8(made)))
    same_bits(lambda: times(made, x[0]))


def test_rows_do_not_depend_on_each_other(int8_path, rng):
    """A text's result is that of the text alone, whatever else is in the batch."""
    if int8_path == "torch":
        pytest.skip("torch's own matter")
    x, weight, bias = torch.randn(200, 520), pack_int8(table(130, 520)), torch.randn(130)
    whole, gelu = linear(x, weight, bias), linear_gelu_int8(quantize_rows(x), weight, bias)
    for first, last in ((0, 1), (5, 12), (60, 70), (94, 130), (180, 200)):
        part = x[first:last]
        assert torch.equal(linear(part, weight, bias), whole[first:last])
        found = linear_gelu_int8(quantize_rows(part), weight, bias)
        assert torch.equal(found.float(), gelu.float()[first:last])


def test_empty(int8_path):
    weight = pack_int8(table(3, 4))
    assert linear(torch.empty(0, 4), weight).shape == (0, 3)
    none = quantize_rows(torch.empty(0, 4))
    assert len(none) == 0 and none.float().shape == (0, 4)
    assert len(linear_gelu_int8(none, weight, torch.ones(3))) == 0
    assert linear(torch.ones(2, 4), pack_int8(table(0, 4))).shape == (2, 0)
    x = torch.empty(0, 8)
    y, rows = add_layernorm_int8(x, x, *parameters(8), EPS, out=torch.empty(0, 8))
    assert y.shape == (0, 8) and len(rows) == 0
    y, rows = embed_layernorm_int8(*embedding(8, 0), EPS, out=torch.empty(0, 8))
    assert y.shape == (0, 8) and len(rows) == 0


def test_packed_for_other_instructions(rng):
    if not native.available:
        pytest.skip("nothing is packed")
    lib, x = native.library(), torch.randn(3, 8)
    before = lib.cpu_path()
    weight, rows = pack_int8(table(5, 8)), quantize_rows(x)
    other = next((p for p in lib.cpu_paths() if _of_path(lib, p)[0] != weight.panel), None)
    if other is None:
        pytest.skip("one width of vectors alone")
    try:
        lib.cpu_path(other)
        with pytest.raises(ValueError, match="packed for other instructions"):
            linear(x, weight)
        with pytest.raises(ValueError, match="packed for other instructions"):
            linear_gelu_int8(rows, weight, torch.ones(5))
    finally:
        lib.cpu_path(before)


def _of_path(lib, path):
    before = lib.cpu_path()
    lib.cpu_path(path)
    try:
        return lib.int8_panel(), lib.int8_group()
    finally:
        lib.cpu_path(before)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(weight=torch.ones(3, 4)), TypeError, "weight: expected an Int8Weight, found Tensor"),
        (dict(weight=None), TypeError, "weight: expected an Int8Weight, found NoneType"),
        (dict(weight=(3, 5)), ValueError, "rows: expected 5 columns, found 4"),
        (dict(bias=torch.ones(4)), ValueError, r"bias: expected shape \[3\]"),
        (dict(bias=torch.ones(3).double()), TypeError, "bias: expected dtype"),
        (dict(bias=[1.0] * 3), TypeError, "bias: expected a torch.Tensor, found list"),
    ],
)
def test_bad_arguments_of_products(int8_path, change, error, message):
    given = dict(weight=(3, 4), bias=torch.ones(3)) | change
    if isinstance(given["weight"], tuple):
        given["weight"] = pack_int8(table(*given["weight"]))
    rows = quantize_rows(torch.ones(2, 4))
    with pytest.raises(error, match=message):
        linear_int8(rows, *given.values(), out=torch.empty(2, 3))
    with pytest.raises(error, match=message):
        linear_gelu_int8(rows, *given.values())


def test_bad_outputs_of_products(int8_path):
    rows, weight = quantize_rows(torch.ones(2, 4)), pack_int8(table(3, 4))
    for out, error, message in (
        (torch.empty(2, 4), ValueError, r"out: expected shape \[2, 3\]"),
        (torch.empty(2, 3).double(), TypeError, "out: expected dtype"),
        (None, TypeError, "out: expected a torch.Tensor"),
    ):
        with pytest.raises(error, match=message):
            linear_int8(rows, weight, out=out)
    with pytest.raises(ValueError, match=r"out.data: expected shape \[16, 64\]"):
        linear_gelu_int8(rows, weight, torch.ones(3), empty_rows(17, 3))
    with pytest.raises(ValueError, match=r"out.scales: expected shape \[2, 1, 2\]"):
        linear_gelu_int8(rows, weight, torch.ones(3), empty_rows(3, 3))
    if int8_path != "torch":
        with pytest.raises(ValueError, match="out: expected contiguous rows, found strides"):
            linear_int8(rows, weight, out=torch.empty(3, 2).t())
    with pytest.raises(TypeError, match="gelu: expected another weight, found one in int8"):
        linear(torch.ones(2, 4), weight, torch.ones(3), gelu=True)


def test_bad_arguments(int8_path):
    x, p = torch.zeros(2, 8), torch.zeros(8)
    for given in (x[0], x[None]):
        with pytest.raises(ValueError, match="x: expected 2 dimensions"):
            quantize_rows(given)
    for given in (x.double(), x.int(), [1.0]):
        with pytest.raises(TypeError, match="x: expected"):
            quantize_rows(given)
    with pytest.raises(ValueError, match=r"out.data: expected shape \[16, 64\]"):
        quantize_rows(x, empty_rows(2, 65))
    with pytest.raises(TypeError, match="weight: expected"):
        quantize_table(x.int())
    with pytest.raises(ValueError, match="weight: expected 2 dimensions"):
        quantize_table(p)
    with pytest.raises(ValueError, match=r"residual: expected shape \[2, 8\]"):
        add_layernorm_int8(x, x[:1], p, p, p, EPS, out=x)
    with pytest.raises(TypeError, match="x: expected dtype"):
        add_layernorm_int8(x.double(), x.double(), p, p, p, EPS, out=x.double())
    with pytest.raises(ValueError, match=r"shift: expected shape \[8\]"):
        add_layernorm_int8(x, x, p, p, p[:7], EPS, out=x)
    with pytest.raises(TypeError, match="out: expected dtype"):
        add_layernorm_int8(x, x, p, p, p, EPS, out=x.bfloat16())
    with pytest.raises(ValueError, match=r"rows.data: expected shape \[16, 64\]"):
        add_layernorm_int8(x, x, p, p, p, EPS, out=x, rows=empty_rows(2, 65))
    ids, word = torch.zeros(2, dtype=torch.int32), table(5, 8)
    with pytest.raises(TypeError, match="word, position: expected Int8Tables, found"):
        embed_layernorm_int8(ids, ids, x, word, p, p, p, EPS, out=x)
    with pytest.raises(TypeError, match="ids: expected dtype"):
        embed_layernorm_int8(ids.long(), ids, word, word, p, p, p, EPS, out=x)
    with pytest.raises(ValueError, match=r"positions: expected shape \[2\]"):
        embed_layernorm_int8(ids, ids[:1], word, word, p, p, p, EPS, out=x)
    with pytest.raises(ValueError, match=r"position: expected shape \[5, 8\]"):
        embed_layernorm_int8(ids, ids, word, table(5, 9), p, p, p, EPS, out=x)
    with pytest.raises(ValueError, match=r"out: expected shape \[2, 8\]"):
        embed_layernorm_int8(ids, ids, word, word, p, p, p, EPS, out=x[:1])
    with pytest.raises(ValueError, match="ids: expected 0 to 4, found 0 to 5"):
        embed_layernorm_int8(
            ids + torch.tensor([0, 5]).int(), ids, word, word, p, p, p, EPS, out=x
        )
    with pytest.raises(ValueError, match="positions: expected 0 to 4, found -1 to -1"):
        embed_layernorm_int8(ids, ids - 1, word, word, p, p, p, EPS, out=x)
    with pytest.raises(ValueError, match=r"type_row: expected shape \[8\]"):
        embed_layernorm_int8(ids, ids, word, word, p[:1], p, p, EPS, out=x)
    with pytest.raises(ValueError, match="ids: expected 0 to -1"):
        embed_layernorm_int8(ids, ids, table(0, 8), word, p, p, p, EPS, out=x)


@pytest.mark.skipif(not native.available, reason=native.why)
def test_what_the_bindings_refuse(int8_path):
    """Matrices that do not fit each other, which Python has no way to make."""
    if int8_path == "torch":
        pytest.skip("nothing is bound")
    lib, rows, weight = native.library(), quantize_rows(torch.ones(2, 70)), pack_int8(table(3, 70))
    made, bias, out = empty_rows(2, 3), torch.ones(3), torch.empty(2, 3)
    for change, message in (
        (dict(panel=weight.panel + 1), f"found {weight.panel + 1}: packed for other instructions"),
        (dict(data=rows.data[:, :64].contiguous()), "rows: expected .* and 128 bytes, found"),
        (dict(data=rows.data[:15].contiguous()), "rows: expected .* and 128 bytes, found"),
        (dict(scales=rows.scales[:, :0].contiguous()), "expected 0 rows"),
        (dict(packed=weight.data[:, :-1].contiguous()), "packed for other instructions"),
        (dict(scale=weight.scale[:-1].contiguous()), "packed for other instructions"),
    ):
        given = dict(
            data=rows.data, scales=rows.scales, packed=weight.data, panel=weight.panel,
            scale=weight.scale, sums=weight.sums.view(-1),
        )  # fmt: skip
        given = tuple((given | change).values())
        with pytest.raises(ValueError, match=message):
            lib.linear_int8(*given, None, out, 1)
        with pytest.raises(ValueError, match=message):
            lib.linear_gelu_int8(*given, bias, made.data, made.scales, 1)
    with pytest.raises(TypeError):
        lib.linear_int8(
            rows.data, rows.scales, weight.data, weight.panel, weight.scale.double(),
            weight.sums.view(-1), None, out, 1,
        )  # fmt: skip


@pytest.mark.skipif(not native.available, reason=native.why)
def test_packed_for_other_groups(rng):
    """Panels are alike, and sums of a group are not: of 128 columns here, of 512 there."""
    lib = native.library()
    before, here = lib.cpu_path(), (lib.int8_panel(), lib.int8_group())
    weight = pack_int8(table(65, 600))
    found = {p: _of_path(lib, p) for p in lib.cpu_paths()}
    other = [p for p, (panel, n) in found.items() if panel == here[0] and n != here[1]]
    if not other:
        pytest.skip("no such two")
    try:
        lib.cpu_path(other[0])
        with pytest.raises(ValueError, match="packed for other instructions"):
            linear(torch.randn(3, 600), weight)
    finally:
        lib.cpu_path(before)


@pytest.mark.skipif(not native.available, reason=native.why)
@pytest.mark.parametrize("op", ["add", "embed", "linear", "gelu", "times"])
def test_strided_parameters(rng, op):
    x, p, made = torch.randn(4, 64), torch.randn(64, 2)[:, 0], table(64, 64)
    ids = torch.arange(4, dtype=torch.int32)

    def run(p):
        if op == "add":
            return add_layernorm_int8(x, x, p, p, p, EPS, out=torch.empty(4, 64))[0]
        if op == "embed":
            given = (ids, ids, made, made, p, p, p, EPS)
            return embed_layernorm_int8(*given, out=torch.empty(4, 64))[0]
        if op == "times":
            return times(made, p)
        if op == "gelu":
            return linear_gelu_int8(quantize_rows(x), pack_int8(made), p).float()
        return linear(x, pack_int8(made), p)

    assert torch.equal(run(p), run(p.contiguous()))


@pytest.mark.skipif(not native.available, reason=native.why)
def test_rows_whose_parts_do_not_fit():
    """No reading behind the bytes, or the scales."""
    rows, weight = quantize_rows(torch.ones(2, 70)), pack_int8(table(3, 70))
    for given in (
        Int8Rows(rows.data, rows.scales.repeat(20, 1, 1), 70),
        Int8Rows(rows.data, rows.scales[:, :0], 70),
        Int8Rows(rows.data, rows.scales.double(), 70),
    ):
        with pytest.raises((TypeError, ValueError), match="rows"):
            linear_int8(given, weight, out=torch.empty(len(given), 3))
