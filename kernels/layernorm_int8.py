"""LayerNorm behind the residual sum or the embedding lookup, its result in eight bits too."""

from __future__ import annotations

import torch

from . import checks, layernorm, native
from .int8 import Int8Rows, Int8Table, quantize_rows, room, wide
from .reference import add_layernorm_ref, embed_layernorm_ref


def add_layernorm_int8(
    x: torch.Tensor,
    residual: torch.Tensor,
    bias: torch.Tensor | None,
    weight: torch.Tensor,
    shift: torch.Tensor,
    eps: float,
    *,
    out: torch.Tensor,
    rows: Int8Rows | None = None,
) -> tuple[torch.Tensor, Int8Rows]:
    """`add_layernorm`, and its result without `shift` in eight bits, from sums in fp32.

    So a channel that is always large takes no bits: W·shift belongs into the bias of what reads it.

    Arguments and errors are those of `add_layernorm`; x is fp32 or bf16, and `out` may be it.
    """
    checks.tensor("x", x, 2, native.DTYPES)
    count, width = layernorm.check(x, residual, bias, weight, shift, out)
    made = room("rows", rows, count, width)
    norm = None if bias is None else wide(bias), wide(weight), wide(shift)
    if lib := native.library_for(x, residual, out):
        given = (x, residual, *norm, eps, out, made.data, made.scales)
        lib.add_layernorm_int8(*given, native.threads())
        return out, made
    y = add_layernorm_ref(x.float(), residual.float(), norm[0], norm[1], 0 * norm[2], eps)
    quantize_rows(y, made)
    return out.copy_(y + norm[2]), made


def embed_layernorm_int8(
    ids: torch.Tensor,
    positions: torch.Tensor,
    word: object,
    position: object,
    type_row: torch.Tensor,
    weight: torch.Tensor,
    shift: torch.Tensor,
    eps: float,
    *,
    out: torch.Tensor,
    rows: Int8Rows | None = None,
) -> tuple[torch.Tensor, Int8Rows]:
    """`embed_layernorm` of tables in int8, and its result without `shift` in eight bits.

    Args:
        ids, positions: int32 [T], rows of `word` [V, C] and `position` [P, C], both `Int8Table`.
        out: [T, C], fp32 or bf16, written and returned.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape, or an id or position without a row.
    """
    if not isinstance(word, Int8Table) or not isinstance(position, Int8Table):
        found = type(word).__name__, type(position).__name__
        raise TypeError(f"word, position: expected Int8Tables, found {found}")
    checks.tensor("ids", ids, 1, (torch.int32,))
    checks.shape("positions", checks.tensor("positions", positions, 1, (torch.int32,)), ids.shape)
    width = word.shape[1]
    checks.shape("position", position.data, (position.shape[0], width))
    checks.shape("out", checks.tensor("out", out, 2, native.DTYPES), (len(ids), width))
    for name, index, table in (("ids", ids, word), ("positions", positions, position)):
        low, high = (int(v) for v in index.aminmax()) if len(index) else (0, 0)
        if len(index) and not 0 <= low <= high < table.shape[0]:
            raise ValueError(f"{name}: expected 0 to {table.shape[0] - 1}, found {low} to {high}")
    for name, value in (("type_row", type_row), ("weight", weight), ("shift", shift)):
        checks.parameter(name, value, width, out)
    made = room("rows", rows, len(ids), width)
    norm = wide(type_row), wide(weight), wide(shift)
    lib = native.library_for(out)
    tables = (word.data, word.scale, position.data, position.scale)
    if lib and all(t.is_contiguous() for t in (ids, positions, *tables)):
        given = (ids, positions, *tables, *norm, eps, out, made.data, made.scales)
        lib.embed_layernorm_int8(*given, native.threads())
        return out, made
    each = torch.arange(len(ids), dtype=torch.int32)
    picked = word[ids.long()], position[positions.long()]
    y = embed_layernorm_ref(each, each, *picked, norm[0], norm[1], 0 * norm[2], eps)
    quantize_rows(y, made)
    return out.copy_(y + norm[2]), made
