"""Ragged token ids to one packed row of tokens, with no padding, on the host."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import checks, native


class Packed(NamedTuple):
    """N texts end to end, T tokens; all but `longest` are parts of one buffer.

    Attributes:
        ids: int32 [T].
        positions: int32 [T], rows of the position table.
        texts: int32 [T], which of the N texts a token belongs to.
        cu_seqlens: int32 [N + 1], text i owns tokens cu_seqlens[i]:cu_seqlens[i + 1].
        longest: tokens of the longest text.
    """

    ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    texts: NDArray[np.int32]
    cu_seqlens: NDArray[np.int32]
    longest: int


def packed_entries(tokens: int, texts: int) -> int:
    """int32 entries that `pack` needs in `out`: each part begins at a multiple of 16 bytes."""
    return 3 * _aligned(tokens) + texts + 1


def _aligned(tokens: int) -> int:
    return (tokens + 3) // 4 * 4


def pack(
    ids: NDArray[np.int32],
    offsets: NDArray[np.int64],
    order: NDArray[np.int64],
    pad_id: int | None,
    vocab_size: int,
    *,
    out: NDArray[np.int32] | None = None,
) -> Packed:
    """m = ids != pad_id; positions = cumsum(m)·m + pad_id, restarting at each text.

    The first token gets pad_id + 1; a literal pad token gets pad_id and does not advance the
    count (XLM-R and RoBERTa). With `pad_id` None positions are 0, 1, 2, … (BERT).

    Args:
        ids: int32 [all tokens], texts end to end in input order.
        offsets: int64 [texts + 1], text i owns ids[offsets[i]:offsets[i + 1]].
        order: int64 [N], the texts to pack, in the order to pack them.
        pad_id: the pad token, or None for positions from 0.
        vocab_size: ids are in [0, vocab_size).
        out: int32 [packed_entries(T, N) or more] to write into, as pinned memory for an upload;
            ids, positions, texts and cu_seqlens lie there in this order.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, an entry of `order` without a text, an id outside the
            vocabulary (named with its text), more than 2³¹ - 1 tokens, or too short an `out`.
    """
    ids = checks.array("ids", ids, np.int32)
    offsets = checks.offsets("offsets", offsets, len(ids), np.int64)
    order = checks.array("order", order, np.int64)
    if out is not None:
        out = checks.writable("out", out, np.int32)

    if lib := native.library():
        return Packed(*lib.pack(ids, offsets, order, pad_id, vocab_size, out))
    return _pack_numpy(ids, offsets, order, pad_id, vocab_size, out)


def _pack_numpy(
    ids: NDArray[np.int32],
    offsets: NDArray[np.int64],
    order: NDArray[np.int64],
    pad_id: int | None,
    vocab_size: int,
    out: NDArray[np.int32] | None,
) -> Packed:
    n_texts = len(offsets) - 1
    bad = np.flatnonzero((order < 0) | (order >= n_texts))
    if len(bad):
        raise ValueError(
            f"order: texts 0 to {n_texts - 1} were expected, got {order[bad[0]]} at {bad[0]}"
        )
    lengths = np.diff(offsets)[order]
    ends = np.concatenate([[0], np.cumsum(lengths)])
    if ends[-1] > np.iinfo(np.int32).max:
        raise ValueError(f"ids: fewer than 2**31 tokens were expected, got {ends[-1]}")
    starts = np.repeat(ends[:-1], lengths)
    places = np.arange(ends[-1]) - starts  # index of each token within its text
    packed = ids[np.repeat(offsets[order], lengths) + places]
    bad = np.flatnonzero((packed < 0) | (packed >= vocab_size))
    if len(bad):
        text = order[np.searchsorted(ends, bad[0], side="right") - 1]
        raise ValueError(
            f"ids: 0 to {vocab_size - 1} was expected, got {packed[bad[0]]} in text {text}"
        )
    positions = places
    if pad_id is not None:
        real = packed != pad_id
        count = np.concatenate([[0], np.cumsum(real)])  # before each token
        positions = (count[1:] - count[starts]) * real + pad_id
    room, step = packed_entries(len(packed), len(order)), _aligned(len(packed))
    out = np.empty(room, np.int32) if out is None else out
    if len(out) < room:
        raise ValueError(f"out: at least {room} entries were expected, got {len(out)}")
    texts = np.repeat(np.arange(len(order)), lengths)
    parts = [out[i * step : i * step + len(packed)] for i in range(3)]
    parts.append(out[3 * step : room])
    for part, values in zip(parts, (packed, positions, texts, ends), strict=True):
        part[:] = values
    return Packed(parts[0], parts[1], parts[2], parts[3], int(lengths.max(initial=0)))
