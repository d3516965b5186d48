"""LayerNorm fused with the residual sum or embedding lookup before it, or the sparse head after."""

from __future__ import annotations

import torch

from . import checks, dispatch, native
from .reference import add_layernorm_ref, embed_layernorm_ref

WIDEST = 4096  # columns that the GPU kernels hold in registers


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
    _, width = check(x, residual, bias, weight, shift, out)

    given = (x, residual, bias, weight, shift, out)
    if dispatch.takes("add_layernorm", *given, unsupported=_unsupported(width, *given)):
        from .gpu.layernorm import launch_add_layernorm

        out = torch.empty_like(x) if out is None else out
        launch_add_layernorm(x, residual, bias, weight, shift, eps, out)
        return out
    if lib := native.library_for(x, residual, bias, weight, shift, out):
        out = torch.empty_like(x) if out is None else out
        wide = None if bias is None else bias.float(), weight.float(), shift.float()
        lib.add_layernorm(x, residual, *wide, eps, out, native.threads())
        return out
    y = add_layernorm_ref(x, residual, bias, weight, shift, eps)
    return y if out is None else out.copy_(y)


def add_layernorm_dot(
    x: torch.Tensor,
    residual: torch.Tensor,
    bias: torch.Tensor | None,
    weight: torch.Tensor,
    shift: torch.Tensor,
    eps: float,
    head_weight: torch.Tensor,
    head_bias: torch.Tensor,
    *,
    out: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """y = add_layernorm(…); relu(y·h + b), row by row: the last LayerNorm and the sparse head.

    Args:
        x, residual, bias, weight, shift, eps, out: as for `add_layernorm`.
        head_weight: h, [C].
        head_bias: b, [1].
        weights: fp32 [T] to write into; a new tensor if None.

    Returns:
        y [T, C] in the dtype of `x`, and fp32 [T]: the product of y as rounded to its dtype,
        summed in fp32 (in fp64 where one of them is).

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape.
    """
    rows, width = check(x, residual, bias, weight, shift, out)
    checks.parameter("head_weight", head_weight, width, x)
    checks.parameter("head_bias", head_bias, 1, x)
    if weights is not None:
        checks.shape("weights", checks.tensor("weights", weights, 1, (torch.float32,)), (rows,))
        checks.device("weights", weights, x)

    given = (x, residual, bias, weight, shift, head_weight, head_bias, out, weights)
    if dispatch.takes("add_layernorm_dot", *given, unsupported=_unsupported(width, *given)):
        from .gpu.layernorm import launch_add_layernorm

        out = torch.empty_like(x) if out is None else out
        weights = x.new_empty(rows, dtype=torch.float32) if weights is None else weights
        head = (head_weight, head_bias, weights)
        launch_add_layernorm(x, residual, bias, weight, shift, eps, out, head)
        return out, weights
    y = add_layernorm(x, residual, bias, weight, shift, eps, out=out)
    # Not in bf16: oneDNN compiles a product for each number of rows and keeps it: 1.8 ms, 0.6 MB.
    wide = torch.promote_types(torch.float32, x.dtype)
    found = torch.relu(y.to(wide) @ head_weight.to(wide) + head_bias.to(wide)).float()
    return y, found if weights is None else weights.copy_(found)


def check(
    x: torch.Tensor,
    residual: torch.Tensor,
    bias: torch.Tensor | None,
    weight: torch.Tensor,
    shift: torch.Tensor,
    out: torch.Tensor | None,
) -> tuple[int, int]:
    """T and C of the arguments of `add_layernorm`, or its errors."""
    rows, width = checks.tensor("x", x, 2, checks.FLOATS).shape
    checks.shape("residual", checks.tensor("residual", residual, 2, (x.dtype,)), (rows, width))
    checks.device("residual", residual, x)
    for name, value in (("bias", bias), ("weight", weight), ("shift", shift)):
        if value is not None or name != "bias":
            checks.parameter(name, value, width, x)
    if out is not None:
        checks.output(out, (rows, width), x)
    return rows, width


def _unsupported(width: int, *tensors: torch.Tensor | None) -> str:
    wide = f"rows of more than {WIDEST} columns" if width > WIDEST else ""
    return wide or dispatch.unsupported(*tensors)


def embed_layernorm(
    ids: torch.Tensor,
    positions: torch.Tensor,
    word: torch.Tensor,
    position: torch.Tensor,
    type_row: torch.Tensor,
    weight: torch.Tensor,
    shift: torch.Tensor,
    eps: float,
    *,
    out: torch.Tensor | None = None,
    check_ids: bool = True,
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
        out: [T, C] to write into; a new tensor if None.
        check_ids: False promises that every id and position has its row, and on a GPU saves
            waiting for it; a GPU kernel reads the nearest row where that is not so.

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
    checks.device("position", position, word)
    if out is not None:
        checks.output(out, (len(ids), word.shape[1]), word)
    for name, index, table in (("ids", ids, word), ("positions", positions, position)):
        checks.device(name, index, word)
        if not check_ids and len(table):
            continue
        low, high = (int(v) for v in index.aminmax()) if len(index) else (0, 0)
        if len(index) and not 0 <= low <= high < len(table):
            raise ValueError(f"{name}: expected 0 to {len(table) - 1}, found {low} to {high}")

    given = (word, position, type_row, weight, shift, out)
    reason = _unsupported(word.shape[1], ids, positions, *given)
    if dispatch.takes("embed_layernorm", *given, unsupported=reason):
        from .gpu.layernorm import launch_embed_layernorm

        out = word.new_empty(len(ids), word.shape[1]) if out is None else out
        launch_embed_layernorm(ids, positions, word, position, type_row, weight, shift, eps, out)
        return out
    lib = native.library_for(*given)
    if lib and ids.is_contiguous() and positions.is_contiguous():
        out = word.new_empty(len(ids), word.shape[1]) if out is None else out
        wide = type_row.float(), weight.float(), shift.float()
        lib.embed_layernorm(ids, positions, word, position, *wide, eps, out, native.threads())
        return out
    y = embed_layernorm_ref(ids, positions, word, position, type_row, weight, shift, eps)
    return y if out is None else out.copy_(y)
