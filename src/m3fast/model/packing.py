"""Token ids of many texts -> the packed batches the encoder reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from m3fast.errors import InputError
from m3fast.kernels.packing import pack
from m3fast.types import PackedBatch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from m3fast.checkpoint.config import ModelConfig
    from m3fast.types import TokenIds


def pack_texts(
    tokens: TokenIds,
    order: NDArray[np.int64],
    config: ModelConfig,
    out: NDArray[np.int32] | None = None,
) -> PackedBatch:
    """Gather texts `order` of `tokens` into one batch, without padding.

    Its arrays are parts of `out`, as `m3fast.kernels.packing.pack` lays them out.

    Raises:
        InputError: a token id that the model has no row for, naming text and id.
    """
    try:
        pad_id, vocab_size = config.position_pad_id, config.vocab_size
        packed = pack(tokens.ids, tokens.offsets, order, pad_id, vocab_size, out=out)
    except ValueError as error:  # a tokenizer larger than the model's vocabulary
        raise InputError(f"texts: {error}") from error
    return PackedBatch(
        packed.ids, packed.positions, packed.cu_seqlens, packed.longest, packed.texts
    )
