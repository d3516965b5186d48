"""Ragged token ids to one packed row of tokens, with no padding."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import checks, native

Packed = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], int]


def pack(
    ids: NDArray[np.int32],
    offsets: NDArray[np.int64],
    order: NDArray[np.int64],
    pad_id: int | None,
    vocab_size: int,
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

    Returns:
        ids int32 [T], positions int32 [T], cu_seqlens int32 [N + 1], and the longest length.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, an entry of `order` without a text, an id outside the
            vocabulary (named with its text), or more than 2³¹ - 1 tokens.
    """
    ids = checks.array("ids", ids, np.int32)
    offsets = checks.offsets("offsets", offsets, len(ids), np.int64)
    order = checks.array("order", order, np.int64)

    if lib := native.library():
        return lib.pack(ids, offsets, order, pad_id, vocab_size)
    return _pack_numpy(ids, offsets, order, pad_id, vocab_size)


def _pack_numpy(
    ids: NDArray[np.int32],
    offsets: NDArray[np.int64],
    order: NDArray[np.int64],
    pad_id: int | None,
    vocab_size: int,
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
    cu_seqlens = ends.astype(np.int32)
    return packed, positions.astype(np.int32), cu_seqlens, int(lengths.max(initial=0))
