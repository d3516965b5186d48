"""Eight bits on a CPU: weights with a scale per output, rows with a scale per group of columns.

    y = x·Wᵀ + b,   W ≈ scale·q,   x ≈ s·(u - z)

Rows become bytes where they are made: in LayerNorm, behind GELU, or by `quantize_rows`. Products
are summed in integers. Without VNNI u has seven bits, and groups are smaller (docs/adr/0020).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from . import checks, native
from .reference import bias_gelu_ref
from .reference_int8 import (
    linear_int8_ref,
    quantize_rows_ref,
    quantize_table_ref,
    unquantized_ref,
)

STEP, ROW_STEP = 64, 16  # what columns and rows of bytes are padded to a multiple of
# Of a weight's norm, an error that says eight bits do not hold it. Ordinary layers have 0.007; one
# where each row has a number far above the others leaves these few bits.
TOO_ROUGH = 0.015


@dataclass(frozen=True, slots=True)
class Int8Table:
    """A matrix in int8 with a scale for each row: w ≈ scale·data.

    Attributes:
        data: int8 [N, K]; scale: float32 [N].
    """

    data: torch.Tensor
    scale: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        rows, cols = self.data.shape
        return rows, cols

    def __getitem__(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows in float32, by number."""
        return self.data[rows].float() * self.scale[rows][..., None]

    def to(self, dtype: torch.dtype) -> torch.Tensor:
        """The matrix [N, K] in a floating dtype."""
        return (self.data.float() * self.scale[:, None]).to(dtype)


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """A table in the order in which the CPU's kernel reads it, made by `pack_int8`.

    Attributes:
        data: int8 [1, outs·depth]: panels of `panel` outputs, [depth / 4, panel, 4] each.
        scale: float32 [outs]; sums: float32 [groups, outs], of the integers of a group.
        shape: (N, K) of the weight.
        panel: outputs of a panel; 0 where torch multiplies, and data is [N, K] as it was.
    """

    data: torch.Tensor
    scale: torch.Tensor
    sums: torch.Tensor
    shape: tuple[int, int]
    panel: int

    @property
    def dtype(self) -> torch.dtype:
        return torch.int8


@dataclass(frozen=True, slots=True)
class Int8Rows:
    """Rows in eight bits: x ≈ scale·(u - zero).

    Attributes:
        data: uint8 [≥ T, ≥ K], u; more rows and columns are padding, whatever they hold.
        scales: float32 [T, G, 2]: scale and -scale·zero of each `group` of columns.
        width: K.
    """

    data: torch.Tensor
    scales: torch.Tensor
    width: int

    def __len__(self) -> int:
        return len(self.scales)

    def float(self) -> torch.Tensor:
        """float32 [T, K]."""
        return unquantized_ref(self.data[: len(self), : self.width], self.scales, group())


def group() -> int:
    """Columns of a row that share a scale."""
    lib = native.library()
    return lib.int8_group() if lib else 512


def row_sizes(rows: int, width: int) -> tuple[tuple[int, int], tuple[int, int, int]]:
    """Shapes of the bytes and of the scales of so many rows."""
    padded = -(-rows // ROW_STEP) * ROW_STEP, -(-width // STEP) * STEP
    return padded, (rows, -(-width // group()), 2)


def empty_rows(rows: int, width: int) -> Int8Rows:
    """Room for so many rows."""
    data, scales = row_sizes(rows, width)
    return Int8Rows(torch.empty(data, dtype=torch.uint8), torch.empty(scales), width)


def quantize_table(weight: torch.Tensor) -> Int8Table:
    """A floating matrix [N, K] as bytes: scale = max|w| / 127 of each row.

    Raises:
        TypeError: not a tensor of floats.
        ValueError: not two dimensions.
    """
    checks.tensor("weight", weight, 2, checks.FLOATS)
    return Int8Table(*quantize_table_ref(weight.detach()))


def holds(table: Int8Table, weight: torch.Tensor) -> bool:
    """Whether eight bits are enough for this weight: else a product with it stays in floats."""
    exact = weight.float()
    return float((table.to(torch.float32) - exact).norm()) <= TOO_ROUGH * float(exact.norm())


def times(table: Int8Table, x: torch.Tensor) -> torch.Tensor:
    """W·x float32 [N] of a vector of floats [K]."""
    y = torch.empty(table.shape[0])
    if lib := native.library():
        given = table.data.contiguous(), table.scale.contiguous(), wide(x), y
        lib.int8_times(*given, native.threads())
        return y
    return table.to(torch.float32) @ x.float()


def stacked(tables: Sequence[Int8Table]) -> Int8Table:
    """Tables of one width as one, the rows of the first on top."""
    if len(tables) == 1:
        return tables[0]
    return Int8Table(torch.cat([t.data for t in tables]), torch.cat([t.scale for t in tables]))


def pack_int8(table: Int8Table) -> Int8Weight:
    """A copy of a table in the order of `linear_int8`.

    Raises:
        ValueError: it has no columns.
    """
    lib = native.library()
    outs, depth = table.shape
    if not depth:
        raise ValueError(f"table: expected one column or more, found shape {list(table.shape)}")
    if not lib:
        sums = torch.empty(0)
        return Int8Weight(table.data, table.scale, sums, table.shape, 0)
    panel = lib.int8_panel()
    all_outs, padded = -(-outs // panel) * panel, -(-depth // STEP) * STEP
    data = torch.empty(1, all_outs * padded, dtype=torch.int8)
    scale, sums = torch.empty(all_outs), torch.empty(-(-padded // group()), all_outs)
    lib.pack_int8(
        table.data.contiguous(), table.scale.contiguous(), data, scale, sums, native.threads()
    )
    return Int8Weight(data, scale, sums, table.shape, panel)


def unpack_int8(weight: Int8Weight) -> torch.Tensor:
    """The weight float32 [N, K] that is multiplied."""
    outs, depth = weight.shape
    if weight.panel == 0:
        return Int8Table(weight.data, weight.scale).to(torch.float32)
    parts = weight.data.view(len(weight.scale) // weight.panel, -1, weight.panel, 4)
    plain = parts.transpose(1, 2).reshape(len(weight.scale), -1)
    return Int8Table(plain[:outs, :depth], weight.scale[:outs]).to(torch.float32)


def quantize_rows(x: torch.Tensor, out: Int8Rows | None = None) -> Int8Rows:
    """Rows [T, K] of fp32 or bf16 in eight bits, or seven without VNNI.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape.
    """
    checks.tensor("x", x, 2, native.DTYPES)
    rows = room("out", out, *x.shape)
    if lib := native.library():
        lib.quantize_rows(x.contiguous(), rows.data, rows.scales, native.threads())
    else:
        _put(rows, x)
    return rows


def linear_int8(
    rows: Int8Rows,
    weight: object,
    bias: torch.Tensor | None = None,
    *,
    out: torch.Tensor,
) -> torch.Tensor:
    """y = x·Wᵀ + b.

    Args:
        rows: x, of T rows and K columns.
        weight: W, an `Int8Weight` of N outputs.
        bias: [N], in the dtype of `out` or fp32; None for no bias.
        out: [T, N], fp32 or bf16, written and returned.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape.
    """
    weight = _check(rows, weight)
    outs = weight.shape[0]
    checks.shape("out", checks.tensor("out", out, 2, native.DTYPES), (len(rows), outs))
    if bias is not None:
        checks.parameter("bias", bias, outs, out)
    if not out.numel():
        return out
    if weight.panel == 0:
        return out.copy_(_product(rows, weight, bias))
    if not out.is_contiguous():
        raise ValueError(f"out: expected contiguous rows, found strides {list(out.stride())}")
    given = (*_given(rows, weight), None if bias is None else wide(bias), out)
    native.library().linear_int8(*given, native.threads())
    return out


def linear_gelu_int8(
    rows: Int8Rows, weight: object, bias: torch.Tensor, out: Int8Rows | None = None
) -> Int8Rows:
    """gelu(x·Wᵀ + b) in eight bits: a task makes whole groups of columns, and so their scales.

    Arguments and errors are those of `linear_int8`.
    """
    weight = _check(rows, weight)
    outs = weight.shape[0]
    made = room("out", out, len(rows), outs)
    checks.tensor("bias", bias, 1, native.DTYPES)
    checks.shape("bias", bias, (outs,))
    if not len(rows) or not outs:
        return made
    if weight.panel == 0:
        _put(made, bias_gelu_ref(_product(rows, weight, None), bias.float()))
        return made
    given = (*_given(rows, weight), wide(bias), made.data, made.scales)
    native.library().linear_gelu_int8(*given, native.threads())
    return made


def _check(rows: Int8Rows, weight: object) -> Int8Weight:
    if not isinstance(weight, Int8Weight):
        raise TypeError(f"weight: expected an Int8Weight, found {type(weight).__name__}")
    if rows.width != weight.shape[1]:
        raise ValueError(f"rows: expected {weight.shape[1]} columns, found {rows.width}")
    room("rows", rows, len(rows), rows.width)
    return weight


def wide(parameter: torch.Tensor) -> torch.Tensor:
    """As the C++ kernels read it: fp32, entry after entry."""
    return parameter.float().contiguous()


def room(name: str, rows: Int8Rows | None, count: int, width: int) -> Int8Rows:
    """`rows`, which must have room for exactly that, or new ones."""
    if rows is None:
        return empty_rows(count, width)
    data, scales = row_sizes(count, width)
    for part, tensor, shape, dtype in (
        ("data", rows.data, data, torch.uint8),
        ("scales", rows.scales, scales, torch.float32),
    ):
        if tensor.shape == shape and tensor.dtype == dtype and tensor.is_contiguous():
            continue
        checks.tensor(f"{name}.{part}", tensor, len(shape), (dtype,))
        checks.shape(f"{name}.{part}", tensor, shape)
        if not tensor.is_contiguous():
            raise ValueError(f"{name}.{part}: expected contiguous rows, found {tensor.stride()}")
    return rows


def _given(rows: Int8Rows, weight: Int8Weight) -> tuple[object, ...]:
    w = weight
    return (rows.data, rows.scales, w.data, w.panel, w.scale, w.sums.view(-1))


def _product(rows: Int8Rows, weight: Int8Weight, bias: torch.Tensor | None) -> torch.Tensor:
    data = rows.data[: len(rows), : rows.width]
    return linear_int8_ref(data, rows.scales, weight.data, weight.scale, bias)


def _put(rows: Int8Rows, x: torch.Tensor) -> None:
    data, scales = quantize_rows_ref(x)
    rows.data[: len(rows), : rows.width] = data
    rows.scales.copy_(scales)
