"""A linear layer with the residual sum and the LayerNorm behind it."""

from __future__ import annotations

import torch

from . import checks, layernorm
from .linear import Weight, few_rows, linear


def linear_add_layernorm(
    x: torch.Tensor,
    weight: Weight,
    bias: torch.Tensor | None,
    residual: torch.Tensor,
    norm_weight: torch.Tensor,
    shift: torch.Tensor,
    eps: float,
    head: tuple[torch.Tensor, torch.Tensor] | None = None,
    *,
    out: torch.Tensor | None = None,
    product: torch.Tensor | None = None,
    early: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`add_layernorm` of x·Wᵀ, or `add_layernorm_dot` of it where there is a head.

    Args:
        x: [T, K].
        weight: W, [N, K], as for `linear`.
        bias, residual, shift, eps, out: as for `add_layernorm`, of width N.
        norm_weight: [N], the LayerNorm's factor.
        head: h [N] and b [1], as for `add_layernorm_dot`.
        product: [T, N] that may be overwritten; a new tensor if None.
        early: as for `linear`.

    Returns:
        [T, N] in the dtype of `x`, and fp32 [T] where there is a head. Few rows on a GPU, called
        early, are normalised from fp32 sums: their product is not rounded in between.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape.
    """
    rows, depth = checks.tensor("x", x, 2, checks.FLOATS).shape
    outs = weight.shape[0]
    others = (bias, residual, norm_weight, shift, *(head or ()), out)
    few = early and isinstance(weight, torch.Tensor) and outs <= layernorm.WIDEST
    if not few or not few_rows("linear_add_layernorm", x, weight, *others):
        norm = (linear(x, weight, out=product), residual, bias, norm_weight, shift, eps)
        if head is None:
            return layernorm.add_layernorm(*norm, out=out), None
        return layernorm.add_layernorm_dot(*norm, *head, out=out)

    from .gpu.layernorm import launch_add_layernorm
    from .gpu.linear import linear_parts

    checks.shape("weight", weight, (outs, depth))
    checks.shape("residual", checks.tensor("residual", residual, 2, (x.dtype,)), (rows, outs))
    layernorm.check(residual, residual, bias, norm_weight, shift, out)
    out = torch.empty_like(residual) if out is None else out
    last = None
    if head is not None:
        checks.parameter("head_weight", head[0], outs, x)
        checks.parameter("head_bias", head[1], 1, x)
        last = (*head, x.new_empty(rows, dtype=torch.float32))
    norm = (residual, bias, norm_weight, shift, eps, out)
    launch_add_layernorm(linear_parts(x, weight), *norm, last, early=True)
    return out, last and last[2]
