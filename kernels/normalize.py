"""Hidden states to the vectors that leave: rows picked, cut, L2-normalised, in fp32."""

from __future__ import annotations

import torch

from . import checks, dispatch
from .reference import vectors_of_rows_ref, vectors_of_tokens_ref

WIDEST = 4096  # columns that the GPU kernel holds in registers


def vectors_of_rows(
    x: torch.Tensor,
    rows: torch.Tensor | None,
    normalize: bool,
    dim: int | None = None,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """v[i] = x[rows[i], :dim], divided by max(||v[i]||, 1e-12) if `normalize`.

    Args:
        x: [T, C].
        rows: int64 [N], each a row of `x`, which is not checked on a GPU; None for all in order.
        normalize: whether to divide by the norm.
        dim: leading columns to keep; None, or more than C, for all.
        out: fp32 [N, min(C, dim)] to write into; a new tensor if None.

    Returns:
        fp32 [N, min(C, dim)]; sums in fp32.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape or device.
    """
    width = _width(x, dim)
    count = len(x)
    if rows is not None:
        count = len(checks.tensor("rows", rows, 1, (torch.int64,)))
        checks.device("rows", rows, x)
    _check_out(out, (count, width), x)

    if dispatch.takes("vectors_of_rows", x, out, unsupported=_unsupported(x, width, out)):
        from .gpu.normalize import launch_vectors

        out = x.new_empty(count, width, dtype=torch.float32) if out is None else out
        launch_vectors(x, normalize, out, count, rows=rows)
        return out
    found = vectors_of_rows_ref(x, rows, normalize, dim)
    return found if out is None else out.copy_(found)


def vectors_of_tokens(
    x: torch.Tensor,
    texts: torch.Tensor,
    cu_seqlens: torch.Tensor,
    normalize: bool,
    dim: int | None = None,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """v = x[t, :dim] of every token but each text's first, divided by max(||v||, 1e-12).

    Token t of text i becomes row t - i - 1. Empty texts may come last only.

    Args:
        x: [T, D]; rows from cu_seqlens[N] on belong to no text and are left out.
        texts: int32 [T], index of each token's text; N where there is none. The GPU trusts it.
        cu_seqlens: int32 [N + 1] on the device of `x`.
        normalize: whether to divide by the norm.
        dim: leading columns to keep; None, or more than D, for all.
        out: fp32 [R, min(D, dim)], R >= tokens of texts less texts; rows beyond are left alone.

    Returns:
        `out`, or fp32 [T - N, min(D, dim)] if None; sums in fp32.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape or device.
    """
    width = _width(x, dim)
    checks.shape("texts", checks.tensor("texts", texts, 1, (torch.int32,)), (len(x),))
    if len(checks.tensor("cu_seqlens", cu_seqlens, 1, (torch.int32,))) == 0:
        raise ValueError("cu_seqlens: at least 1 entry was expected, got 0")
    for name, value in (("texts", texts), ("cu_seqlens", cu_seqlens)):
        checks.device(name, value, x)
    count = max(0, len(x) - len(cu_seqlens) + 1) if out is None else len(out)
    _check_out(out, (count, width), x)

    if dispatch.takes("vectors_of_tokens", x, out, unsupported=_unsupported(x, width, out)):
        from .gpu.normalize import launch_vectors

        out = x.new_empty(count, width, dtype=torch.float32) if out is None else out
        launch_vectors(x, normalize, out, len(x), texts=texts, cu_seqlens=cu_seqlens)
        return out
    found = vectors_of_tokens_ref(x, texts, cu_seqlens, normalize, dim)
    if out is None:
        return found
    out[: len(found)] = found
    return out


def _width(x: torch.Tensor, dim: int | None) -> int:
    full = checks.tensor("x", x, 2, checks.FLOATS).shape[1]
    if dim is not None and dim < 1:
        raise ValueError(f"dim: at least 1 was expected, got {dim}")
    return full if dim is None else min(full, dim)


def _check_out(out: torch.Tensor | None, shape: tuple[int, int], x: torch.Tensor) -> None:
    if out is not None:
        checks.shape("out", checks.tensor("out", out, 2, (torch.float32,)), shape)
        checks.device("out", out, x)


def _unsupported(x: torch.Tensor, width: int, out: torch.Tensor | None) -> str:
    if width > WIDEST:
        return f"vectors of more than {WIDEST} columns"
    return dispatch.unsupported(x, out)
