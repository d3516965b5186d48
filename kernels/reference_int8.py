"""Products in eight bits in plain torch: the specification of `kernels.int8`, exact in integers."""

from __future__ import annotations

import torch


def quantize_table_ref(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """w ≈ scale·q, with q = round(w / scale) in [-127, 127] and scale = max|w| / 127 of each row.

    Returns:
        int8 [N, K], float32 [N].
    """
    wide = weight.float()
    scale = wide.abs().amax(1) / 127 if wide.numel() else wide.new_zeros(len(wide))
    inverse = torch.where(scale > 0, 1 / scale, 0)
    return (wide * inverse[:, None]).round().clamp(-127, 127).to(torch.int8), scale


def quantize_rows_ref(
    x: torch.Tensor, bits: int = 8, group: int = 512
) -> tuple[torch.Tensor, torch.Tensor]:
    """x ≈ scale·(u - zero), u in [0, 2^bits - 1], for each group of columns of each row.

    The range of a group is that of its values and 0. A group of zeros has scale 0.

    Returns:
        uint8 [T, K], float32 [T, G, 2] of scale and -scale·zero; that is NaN where a value of the
        group is not finite.
    """
    top = 2**bits - 1
    found: list[torch.Tensor] = []
    scales: list[torch.Tensor] = []
    for part in x.float().split(group, 1):
        low, high = part.amin(1, keepdim=True).clamp(max=0), part.amax(1, keepdim=True).clamp(min=0)
        wide = high - low
        flat = ~(wide > 1e-30)
        inverse = torch.where(flat, 0, torch.full_like(wide, top) / wide).double()  # not 1 / wide
        scale = torch.where(flat, 0, wide / top)
        zero = (-low.double() * inverse).round()
        # In fp64 the product is exact, as it is where one instruction multiplies and adds.
        u = (part.double() * inverse + zero).round()
        found.append(u.nan_to_num(0, 0, 0).clamp(0, top).to(torch.uint8))
        strange = (part * 0).sum(1, keepdim=True)
        scales.append(torch.cat([scale, strange - scale * zero.float()], 1))
    return torch.cat(found, 1), torch.stack(scales, 1)


def linear_int8_ref(
    rows: torch.Tensor,
    scales: torch.Tensor,
    q: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    group: int = 512,
) -> torch.Tensor:
    """y[n] = scale[n]·Σg (s[g]·Σu·q[n] + o[g]·Σq[n]) + b[n], the inner sums in integers.

    Args:
        rows, scales: of `quantize_rows_ref`.
        q, scale: int8 [N, K] and float32 [N].

    Returns:
        float32 [T, N].
    """
    y = rows.new_zeros(len(rows), len(q), dtype=torch.float32)
    for g, (u, w) in enumerate(zip(rows.split(group, 1), q.split(group, 1), strict=True)):
        products = u.float() @ w.float().t()  # below 2^24 in sum: exact
        y += scales[:, g, :1] * products + scales[:, g, 1:] * w.float().sum(1)
    y *= scale
    return y if bias is None else y + bias.float()


def unquantized_ref(rows: torch.Tensor, scales: torch.Tensor, group: int = 512) -> torch.Tensor:
    """scale·(u - zero), float32 [T, K]."""
    parts = rows.float().split(group, 1)
    return torch.cat([scales[:, g, :1] * u + scales[:, g, 1:] for g, u in enumerate(parts)], 1)
