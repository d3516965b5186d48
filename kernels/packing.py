"""Ragged token ids to one packed row of tokens, with no padding, on the host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from . import checks, native

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    # ids int32 [all tokens], offsets int64 [texts + 1], order int64 [N]: the texts to pack.
    Part = tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]

Buffer = TypeVar("Buffer", NDArray[np.int32], "torch.Tensor")


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the arrays of packed texts lie in one int32 buffer: each begins at 16 bytes' multiple.

    Attributes:
        tokens, texts: that there is room for.
    """

    tokens: int
    texts: int

    @property
    def entries(self) -> int:
        """int32 entries of the buffer."""
        return 3 * self._step + self.texts + 1

    def split(self, buffer: Buffer) -> tuple[Buffer, Buffer, Buffer, Buffer]:
        """ids, positions and texts [tokens], cu_seqlens [texts + 1]."""
        step, size = self._step, self.tokens
        ids, positions, texts = (buffer[i * step : i * step + size] for i in range(3))
        return ids, positions, texts, buffer[3 * step : self.entries]

    @property
    def _step(self) -> int:
        return aligned(self.tokens)


def aligned(entries: int) -> int:
    """So many 4-byte entries or up to three more, a multiple of 16 bytes."""
    return -entries // 4 * -4


class Size(NamedTuple):
    """Of texts to be packed; `longest` in tokens."""

    tokens: int
    texts: int
    longest: int


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
    """int32 entries that `pack` needs in `out`."""
    return Layout(tokens, texts).entries


def pack(
    ids: NDArray[np.int32],
    offsets: NDArray[np.int64],
    order: NDArray[np.int64],
    pad_id: int | None,
    vocab_size: int,
    *,
    out: NDArray[np.int32] | None = None,
) -> Packed:
    """`pack_parts` of one part, whose arrays may be CPU tensors and need not be contiguous.

    Args:
        ids: int32 [all tokens], texts end to end in input order.
        offsets: int64 [texts + 1], text i owns ids[offsets[i]:offsets[i + 1]].
        order: int64 [N], the texts to pack, in the order to pack them.
    """
    part = (
        checks.array("ids", ids, np.int32),
        checks.array("offsets", offsets, np.int64),
        checks.array("order", order, np.int64),
    )
    return pack_parts([part], pad_id, vocab_size, out=out)


def packed_size(parts: Sequence[Part]) -> Size:
    """What `pack_parts` makes of these parts; raises as it does, but for ids."""
    if lib := native.library():
        return Size(*lib.packed_size(tuple(parts)))
    lengths = _lengths(parts)
    return Size(int(lengths.sum()), len(lengths), int(lengths.max(initial=0)))


def pack_parts(
    parts: Sequence[Part],
    pad_id: int | None,
    vocab_size: int,
    *,
    out: NDArray[np.int32] | None = None,
    layout: Layout | None = None,
) -> Packed:
    """m = ids != pad_id; positions = cumsum(m)·m + pad_id, restarting at each text.

    The first token gets pad_id + 1; a literal pad token gets pad_id and does not advance the
    count (XLM-R and RoBERTa). With `pad_id` None positions are 0, 1, 2, … (BERT).

    Args:
        parts: whose texts are packed one part after the other. Each is ids int32 [all tokens],
            offsets int64 [texts + 1], where text i owns ids[offsets[i]:offsets[i + 1]], and order
            int64 [N_i], the texts to pack in the order to pack them: contiguous numpy arrays.
        pad_id: the pad token, or None for positions from 0.
        vocab_size: ids are in [0, vocab_size).
        out: int32 [layout.entries or more] to write into, as pinned memory for an upload.
        layout: of `out`; None for one without room to spare. What room is left is filled too, with
            tokens of id 0 at position 0 that belong to no text, and texts without tokens.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, an entry of an order without a text, an id outside the
            vocabulary (named with its text, counted through all parts), more than 2³¹ - 1 tokens,
            or too short an `out`.
    """
    if layout is None:
        size = packed_size(parts)
        layout = Layout(size.tokens, size.texts)
    if out is None:
        out = np.empty(layout.entries, np.int32)
    else:
        out = checks.writable("out", out, np.int32)
    if len(out) < layout.entries:
        raise ValueError(f"out: expected at least {layout.entries} entries, found {len(out)}")
    arrays = layout.split(out)
    if lib := native.library():
        size = Size(*lib.pack(tuple(parts), pad_id, vocab_size, *arrays))
    else:
        size = _pack_numpy(parts, pad_id, vocab_size, *arrays)
    ids, positions, texts, cu_seqlens = arrays
    tokens = slice(size.tokens)
    return Packed(
        ids[tokens], positions[tokens], texts[tokens], cu_seqlens[: size.texts + 1], size.longest
    )


def _lengths(parts: Sequence[Part]) -> NDArray[np.int64]:
    """Tokens of each text to be packed, all arguments checked but the ids' range."""
    lengths, texts = [np.empty(0, np.int64)], 0
    for ids, offsets, order in parts:
        n_ids = len(checks.array("ids", ids, np.int32))
        offsets = checks.offsets("offsets", offsets, n_ids, np.int64)
        order = checks.array("order", order, np.int64)
        bad = np.flatnonzero((order < 0) | (order >= len(offsets) - 1))
        if len(bad):
            raise ValueError(
                f"order: expected texts 0 to {len(offsets) - 2}, "
                f"found {order[bad[0]]} at {texts + bad[0]}"
            )
        texts += len(order)
        lengths.append(np.diff(offsets)[order])
    total = sum(int(some.sum()) for some in lengths)
    if total > np.iinfo(np.int32).max:
        raise ValueError(f"ids: expected fewer than 2**31 tokens, found {total}")
    return np.concatenate(lengths)


def _pack_numpy(
    parts: Sequence[Part],
    pad_id: int | None,
    vocab_size: int,
    ids: NDArray[np.int32],
    positions: NDArray[np.int32],
    texts: NDArray[np.int32],
    cu_seqlens: NDArray[np.int32],
) -> Size:
    """`pack_parts` into arrays with room for its result."""
    lengths = _lengths(parts)
    ends = np.concatenate([[0], np.cumsum(lengths)])
    size = Size(int(ends[-1]), len(lengths), int(lengths.max(initial=0)))
    if size.tokens > len(ids) or size.texts >= len(cu_seqlens):
        raise ValueError(
            f"out: expected room for {size.tokens} tokens and {size.texts} texts, "
            f"found {len(ids)} and {len(cu_seqlens) - 1}"
        )
    starts = np.repeat(ends[:-1], lengths)
    places = np.arange(size.tokens) - starts  # index of each token within its text
    at = text = 0
    for source, offsets, order in parts:
        begin, text = ends[text], text + len(order)
        its = slice(begin, ends[text])
        first = np.repeat(offsets[order], np.diff(offsets)[order])
        ids[its] = source[first + places[its]]
        bad = np.flatnonzero((ids[its] < 0) | (ids[its] >= vocab_size))
        if len(bad):
            n = np.searchsorted(ends, begin + bad[0], side="right") - 1 - text + len(order)
            raise ValueError(
                f"ids: expected 0 to {vocab_size - 1}, found {ids[its][bad[0]]} "
                f"in text {at + order[n]}"
            )
        at += len(offsets) - 1
    packed = ids[: size.tokens]
    if pad_id is not None:
        real = packed != pad_id
        count = np.concatenate([[0], np.cumsum(real)])  # before each token
        places = (count[1:] - count[starts]) * real + pad_id
    for array, values, rest in (
        (ids, packed, 0),
        (positions, places, 0),
        (texts, np.repeat(np.arange(size.texts), lengths), len(cu_seqlens) - 1),
        (cu_seqlens, ends, size.tokens),
    ):
        array[: len(values)] = values
        array[len(values) :] = rest
    return size
