"""LayerNorm with what comes before it: the residual sum, or the embedding lookup."""

from __future__ import annotations

import torch

from . import checks, native
from .reference import add_layernorm_ref, embed_layernorm_ref


def add_layernorm(
    x: torch.Tensor,
    residual: torch.Tensor,
    bias: torch.Tensor | None,
    weight: torch.Tensor,
    shift: torch.Tensor,
    eps: float,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """y = x + bias + residual; (y - mean(y)) / √(var(y) + eps)·weight + shift, row by row.

    Args:
        x: [T, C].
        residual: [T, C], the same dtype.
        bias: [C] or None for no bias.
        weight: [C], the LayerNorm's factor.
        shift: [C], the LayerNorm's bias.
        eps: added to the variance.
        out: [T, C] to write into, may be `x` or `residual`; a new tensor if None.

    Returns:
        [T, C] in the dtype of `x`; sums in fp32. Parameters are in that dtype or fp32.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape.
    """
    checks.tensor("x", x, 2, checks.FLOATS)
    rows, width = x.shape
    checks.shape("residual", checks.tensor("residual", residual, 2, (x.dtype,)), (rows, width))
    for name, value in (("bias", bias), ("weight", weight), ("shift", shift)):
        if value is not None or name != "bias":
            checks.parameter(name, value, width, x)
    if out is not None:
        checks.output(out, (rows, width), x)

    if lib := native.library_for(x, residual, bias, weight, shift, out):
        out = torch.empty_like(x) if out is None else out
        wide = [None if p is None else p.float() for p in (bias, weight, shift)]
        lib.add_layernorm(
            x.data_ptr(), residual.data_ptr(), *(0 if p is None else p.data_ptr() for p in wide),
            eps, out.data_ptr(), rows, width, native.DTYPES[x.dtype], native.threads(),
        )  # fmt: skip
        return out
    y = add_layernorm_ref(x, residual, bias, weight, shift, eps)
    return y if out is None else out.copy_(y)


def embed_layernorm(
    ids: torch.Tensor,
    positions: torch.Tensor,
    word: torch.Tensor,
    position: torch.Tensor,
    type_row: torch.Tensor,
    weight: torch.Tensor,
    shift: torch.Tensor,
    eps: float,
) -> torch.Tensor:
    """y = word[ids] + position[positions] + type_row, then the LayerNorm of each row.

    Args:
        ids: int32 [T], rows of `word`.
        positions: int32 [T], rows of `position`.
        word: [V, C].
        position: [P, C], the same dtype.
        type_row: [C].
        weight: [C], the LayerNorm's factor.
        shift: [C], the LayerNorm's bias.
        eps: added to the variance.

    Returns:
        [T, C] in the dtype of `word`; sums in fp32.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape, or an id or position without a row.
    """
    checks.tensor("word", word, 2, checks.FLOATS)
    checks.tensor("position", position, 2, (word.dtype,))
    checks.shape("position", position, (position.shape[0], word.shape[1]))
    checks.tensor("ids", ids, 1, (torch.int32,))
    checks.shape("positions", checks.tensor("positions", positions, 1, (torch.int32,)), ids.shape)
    for name, value in (("type_row", type_row), ("weight", weight), ("shift", shift)):
        checks.parameter(name, value, word.shape[1], word)
    for name, index, table in (("ids", ids, word), ("positions", positions, position)):
        low, high = (int(v) for v in index.aminmax()) if len(index) else (0, 0)
        if len(index) and not 0 <= low <= high < len(table):
            raise ValueError(f"{name}: 0 to {len(table) - 1} was expected, got {low} to {high}")

    lib = native.library_for(word, position, type_row, weight, shift)
    if lib and ids.is_contiguous() and positions.is_contiguous():
        out = word.new_empty(len(ids), word.shape[1])
        wide = [p.float() for p in (type_row, weight, shift)]
        lib.embed_layernorm(
            ids.data_ptr(), positions.data_ptr(), word.data_ptr(), position.data_ptr(),
            *(p.data_ptr() for p in wide), eps, out.data_ptr(), *out.shape,
            native.DTYPES[word.dtype], native.threads(),
        )  # fmt: skip
        return out
    return embed_layernorm_ref(ids, positions, word, position, type_row, weight, shift, eps)
