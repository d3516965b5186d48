"""Padded batches to packed rows and back, on the tensors' own device and without waiting for it."""

from __future__ import annotations

from typing import NamedTuple

import torch

from . import checks, native

_ROOM = 4096  # smallest look-back state, in words
_states: dict[tuple[int, int], torch.Tensor] = {}


class Unpadded(NamedTuple):
    """The tokens of a padded batch [B, L] end to end, on its device.

    Rows from cu_seqlens[B] on are dummies: id 0, position 0, text B.

    Attributes:
        ids: int32 [total].
        positions: int32 [total], rows of the position table.
        texts: int32 [total], the row of the batch a token comes from.
        cu_seqlens: int32 [B + 1], row b owns tokens cu_seqlens[b]:cu_seqlens[b + 1].
        slots: int32 [B, L], a place's packed row; negative where the mask has no token: -1, or
            -2 - d where packed row d is a dummy.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    texts: torch.Tensor
    cu_seqlens: torch.Tensor
    slots: torch.Tensor


def unpad(
    ids: torch.Tensor, mask: torch.Tensor, pad_id: int | None, *, total: int | None = None
) -> Unpadded:
    """Tokens where the mask is not 0, row by row: packed ids, positions, texts, cu_seqlens, slots.

    The mask may have any pattern: padding on either side, holes, rows without a token. Positions
    are those that transformers gives the padded batch, whatever the mask says. With a pad id, as
    XLMRobertaModel.create_position_ids_from_input_ids: cumsum(m)·m + pad_id along the row, where
    m = ids != pad_id. With `pad_id` None, as BertModel: the column.

    One launch on a GPU. Ids are not checked there, which would take a wait; one beyond 32 bits
    becomes -1.

    Args:
        ids: int32 or int64 [B, L].
        mask: bool, uint8, int32 or int64 [B, L].
        pad_id: the pad token, or None for positions from 0.
        total: the number of tokens, where the caller knows it; else B·L rows are returned. Of more
            tokens than that, the first `total` are kept.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape or device, `total` or `pad_id` out of range, or too large a batch.
    """
    checks.tensor("ids", ids, 2, (torch.int32, torch.int64))
    checks.tensor("mask", mask, 2, (torch.bool, torch.uint8, torch.int32, torch.int64))
    checks.shape("mask", mask, tuple(ids.shape))
    checks.device("mask", mask, ids)
    if ids.numel() > 2**31 - 2:
        raise ValueError(f"ids: expected fewer than 2**31 - 1, found {ids.numel()}")
    if pad_id is not None and not 0 <= pad_id < 2**31 - 1:
        raise ValueError(f"pad_id: expected 0 to 2**31 - 2, found {pad_id}")
    capacity = ids.numel() if total is None else _in_range("total", total, ids.numel())

    lib = native.cuda_library("unpad", ids, mask)
    if lib is None or ids.numel() == 0:
        return _unpad_torch(ids, mask, pad_id, capacity)
    rows, width = ids.shape
    ids, mask = ids.contiguous(), mask.contiguous()
    packed = ids.new_empty(3, (capacity + 3) // 4 * 4, dtype=torch.int32)[:, :capacity]
    cu_seqlens = ids.new_empty(rows + 1, dtype=torch.int32)
    slots = ids.new_empty(rows, width, dtype=torch.int32)
    device, stream = _stream(ids)
    state = _state(device, stream, rows + 2)
    lib.unpad_ids(ids, mask, pad_id, state, *packed, cu_seqlens, slots, device, stream)
    return Unpadded(packed[0], packed[1], packed[2], cu_seqlens, slots)


def pack_rows(hidden: torch.Tensor, slots: torch.Tensor, total: int) -> torch.Tensor:
    """packed[slots[b, l]] = hidden[b, l]: [B, L, C] -> [total, C]; dummy rows are 0.

    One launch on a GPU, no wait. Gradients flow by way of torch.

    Args:
        hidden: [B, L, C], any dtype.
        slots: int32 [B, L], of `unpad` with the same `total`.
        total: packed rows.
    """
    checks.tensor("hidden", hidden, 3, None)
    checks.tensor("slots", slots, 2, (torch.int32,))
    checks.shape("slots", slots, tuple(hidden.shape[:2]))
    checks.device("slots", slots, hidden)
    _in_range("total", total, slots.numel())

    lib = native.cuda_library("pack_rows", hidden)
    if lib is None or hidden.numel() == 0:
        return _pack_rows_torch(hidden, slots, total)
    hidden, slots = hidden.contiguous(), slots.contiguous()
    packed = hidden.new_empty(total, hidden.shape[2])
    lib.gather_rows(hidden, slots, packed, *_stream(hidden))
    return packed


def pad_rows(packed: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """padded[b, l] = packed[slots[b, l]], 0 where the slot is negative: [T, C] -> [B, L, C].

    One launch on a GPU, no wait. Gradients flow by way of torch.

    Args:
        packed: [T, C], any dtype.
        slots: int32 [B, L], of `unpad`.
    """
    checks.tensor("packed", packed, 2, None)
    checks.tensor("slots", slots, 2, (torch.int32,))
    checks.device("slots", slots, packed)

    lib = native.cuda_library("pad_rows", packed)
    if lib is None or slots.numel() * packed.shape[1] == 0:
        return _pad_rows_torch(packed, slots)
    packed, slots = packed.contiguous(), slots.contiguous()
    padded = packed.new_empty(*slots.shape, packed.shape[1])
    lib.scatter_rows(packed, slots, padded, *_stream(packed))
    return padded


def _unpad_torch(
    ids: torch.Tensor, mask: torch.Tensor, pad_id: int | None, capacity: int
) -> Unpadded:
    rows, width = ids.shape
    n = rows * width
    there = mask.flatten() != 0
    place = torch.arange(n, device=ids.device)
    before = there.cumsum(0) - there.long()
    # A permutation: tokens in order from the front, gaps from the back.
    to = torch.where(there, before, n - 1 - (place - before))

    positions = torch.arange(width, device=ids.device).expand(rows, width)
    if pad_id is not None:
        counted = (ids != pad_id).long()
        positions = counted.cumsum(1) * counted + pad_id
    narrow = torch.where(ids == ids.int(), ids, -1)
    texts = torch.arange(rows, device=ids.device)[:, None].expand(rows, width)

    def packed(values: torch.Tensor, dummy: int) -> torch.Tensor:
        source = torch.where(there, values.flatten(), dummy).int()
        return torch.empty_like(source).scatter_(0, to, source)[:capacity]

    ends = (mask != 0).sum(1).cumsum(0).clamp(max=capacity)
    slots = torch.where(there, to, -2 - to).masked_fill(to >= capacity, -1)
    return Unpadded(
        packed(narrow, 0),
        packed(positions, 0),
        packed(texts, rows),
        torch.cat([ends.new_zeros(1), ends]).int(),
        slots.int().view(rows, width),
    )


def _pack_rows_torch(hidden: torch.Tensor, slots: torch.Tensor, total: int) -> torch.Tensor:
    there = (slots >= 0) & (slots < total)
    to = torch.where(there, slots, total).flatten().long()  # a last row that is cut off
    packed = hidden.new_zeros(total + 1, hidden.shape[2])
    return packed.index_copy(0, to, hidden.flatten(0, 1))[:total]


def _pad_rows_torch(packed: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    if len(packed) == 0:
        return packed.new_zeros(*slots.shape, packed.shape[1])
    there = (slots >= 0) & (slots < len(packed))
    rows = packed[slots.clamp(0, len(packed) - 1).long()]
    return rows.masked_fill(~there[:, :, None], 0)


def _state(device: int, stream: int, words: int) -> torch.Tensor:
    """Zeros that a launch leaves as zeros; launches on one stream share them, as they take turns.

    A CUDA graph gets its own: it may be replayed on another stream than it was captured on.
    """
    if torch.cuda.is_current_stream_capturing():
        return torch.zeros(words, dtype=torch.int64, device=f"cuda:{device}")
    state = _states.get((device, stream))
    if state is None or len(state) < words:
        room = max(_ROOM, 1 << (words - 1).bit_length())
        state = torch.zeros(room, dtype=torch.int64, device=f"cuda:{device}")
        _states[device, stream] = state
    return state


def _stream(tensor: torch.Tensor) -> tuple[int, int]:
    device = tensor.get_device()
    return device, torch.cuda.current_stream(device).cuda_stream


def _in_range(name: str, value: int, most: int) -> int:
    if not 0 <= value <= most:
        raise ValueError(f"{name}: expected 0 to {most}, found {value}")
    return value
