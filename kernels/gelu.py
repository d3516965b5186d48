"""GELU with the bias of the linear layer before it, or with that layer."""

from __future__ import annotations

import torch

from . import checks, dispatch, native
from .linear import Weight, ends_with_gelu, linear
from .reference import bias_gelu_ref


def linear_gelu(
    x: torch.Tensor,
    weight: Weight,
    bias: torch.Tensor,
    *,
    out: torch.Tensor | None = None,
    early: bool = False,
) -> torch.Tensor:
    """gelu(x·Wᵀ + b) [T, N]: in one pass where there is one, else `linear` and `bias_gelu_`.

    On a GPU cuBLASLt's product in bf16 ends with GELU by its tanh (Hendrycks and Gimpel, arXiv
    1606.08415). It is at most 5e-4 from the exact one, but spares the product a rounding: on the
    whole it is nearer (docs/adr/0007).

    Arguments and errors are those of `linear`.
    """
    if ends_with_gelu(x, weight, bias, out, early=early):
        return linear(x, weight, bias, gelu=True, out=out, early=early)
    return bias_gelu_(linear(x, weight, out=out), bias)


def bias_gelu_(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """y = x + bias; x <- y/2·(1 + erf(y/√2)), in place.

    Args:
        x: [T, F], overwritten (where a gradient is wanted it is left alone, and a new tensor
            comes back: use the returned one).
        bias: [F], in the dtype of `x` or fp32.

    Returns:
        `x`. Arithmetic in fp32, absolute error at most 2e-7·max(1, |y|) before rounding.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape.
    """
    checks.tensor("x", x, 2, checks.FLOATS)
    checks.parameter("bias", bias, x.shape[1], x)

    given = (x, bias)
    if dispatch.takes("bias_gelu_", *given, unsupported=dispatch.unsupported(*given)):
        from .gpu.gelu import launch_bias_gelu

        launch_bias_gelu(x, bias)
        return x
    if lib := native.library_for(x, bias):
        lib.bias_gelu(x, bias.float(), native.threads())
        return x
    y = bias_gelu_ref(x, bias)  # torch's own gelu gave NaN for inf with AVX-512
    return y if torch.is_grad_enabled() and y.requires_grad else x.copy_(y)
