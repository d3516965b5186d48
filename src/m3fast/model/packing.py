"""Token ids of many texts -> the packed batches the encoder reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from m3fast.errors import InputError
from m3fast.kernels.packing import pack_parts
from m3fast.types import PackedBatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from m3fast.checkpoint.config import ModelConfig
    from m3fast.kernels.packing import Layout, Part
    from m3fast.types import Selection


def pack_texts(
    parts: Sequence[Selection],
    config: ModelConfig,
    out: NDArray[np.int32] | None = None,
    layout: Layout | None = None,
) -> PackedBatch:
    """Gather the texts of all parts into one batch, without padding.

    `out` and its layout are as in `m3fast.kernels.packing.pack_parts`.

    Raises:
        InputError: a token id that the model has no row for, naming text and id.
    """
    try:
        pad_id, vocab_size = config.position_pad_id, config.vocab_size
        packed = pack_parts(as_arrays(parts), pad_id, vocab_size, out=out, layout=layout)
    except ValueError as error:  # a tokenizer larger than the model's vocabulary
        raise InputError(f"texts: {error}") from error
    return PackedBatch(
        packed.ids, packed.positions, packed.cu_seqlens, packed.longest, packed.texts
    )


def as_arrays(parts: Sequence[Selection]) -> list[Part]:
    """The same parts as the packer takes them."""
    return [(part.tokens.ids, part.tokens.offsets, part.order) for part in parts]
