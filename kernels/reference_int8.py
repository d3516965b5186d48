"""Products in eight bits in plain torch: the specification of `kernels.int8`, exact in integers."""

from __future__ import annotations

import torch

GROUP = 512  # columns of a row that share a scale: their integer products are exact in fp32


def quantize_table_ref(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """w ≈ scale·q, with q = round(w / scale) in [-127, 127] and scale = max|w| / 127 of each row.

    Returns:
        int8 [N, K], float32 [N].
    """
    wide = weight.float()
    scale = wide.abs().amax(1) / 127 if wide.numel() else wide.new_zeros(len(wide))
    inverse = torch.where(scale > 0, 1 / scale, 0)
    return (wide * inverse[:, None]).round().clamp(-127, 127).to(torch.int8), scale


def seven_bits_ref(q: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """q/2, halves away from zero, and twice the scale: what is multiplied without VNNI."""
    wide = q.int()
    return ((wide + (wide > 0)) >> 1).to(torch.int8), 2 * scale


def quantize_rows_ref(x: torch.Tensor, bits: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """x ≈ scale·u + offset, u in [0, 2^bits - 1], for each group of columns of each row.

    offset is the least value of the group. A group that is flat has scale 0. One with a value that
    is not finite has offset NaN.

    Returns:
        uint8 [T, K], float32 [T, G, 2] of scales and offsets.
    """
    top = 2**bits - 1
    bytes_, scales = [], []
    for part in x.float().split(GROUP, 1):
        low, high = part.amin(1, keepdim=True), part.amax(1, keepdim=True)
        wide = high - low
        flat = ~(wide > 1e-30)
        inverse = torch.where(flat, 0, top / wide)
        # In fp64 the product is exact, as it is where one instruction multiplies and adds.
        u = ((part - low).double() * inverse.double()).round()
        bytes_.append(u.nan_to_num(0, 0, 0).clamp(0, top).to(torch.uint8))
        offset = low + (part * 0).sum(1, keepdim=True)
        scales.append(torch.cat([torch.where(flat, 0, wide / top), offset], 1))
    return torch.cat(bytes_, 1), torch.stack(scales, 1)


def linear_int8_ref(
    rows: torch.Tensor,
    scales: torch.Tensor,
    q: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """y[n] = scale[n]·Σg (s[g]·Σu·q[n] + o[g]·Σq[n]) + b[n], the inner sums in integers.

    Args:
        rows, scales: of `quantize_rows_ref`.
        q, scale: int8 [N, K] and float32 [N].

    Returns:
        float32 [T, N].
    """
    y = rows.new_zeros(len(rows), len(q), dtype=torch.float32)
    for g, (u, w) in enumerate(zip(rows.split(GROUP, 1), q.split(GROUP, 1), strict=True)):
        products = u.float() @ w.float().t()  # below 2^24 in sum: exact
        y += scales[:, g, :1] * products + scales[:, g, 1:] * w.float().sum(1)
    y *= scale
    return y if bias is None else y + bias.float()


def unquantized_ref(rows: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """scale·u + offset, float32 [T, K]."""
    parts = rows.float().split(GROUP, 1)
    return torch.cat([scales[:, g, :1] * u + scales[:, g, 1:] for g, u in enumerate(parts)], 1)
