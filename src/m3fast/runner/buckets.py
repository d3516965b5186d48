"""Sizes that a GPU's small batches are padded to: few, so that a CUDA graph can replay each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from m3fast.kernels.attention import most_tiles
from m3fast.runner.staging import Inputs

if TYPE_CHECKING:
    from m3fast.kernels.gpu.attention import AttentionConfig
    from m3fast.kernels.packing import Size

# Tokens of padded batches; a batch of more is run as it is. An eager batch costs the host some ten
# launches a layer, about 5 ms at 24 layers: so long take the kernels of 4,000 to 6,000 tokens. From
# there on padding costs what launching does not, so steps are small.
BUCKETS = (32, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096,
           5120, 6144, 7168, 8192)  # fmt: skip
MOST_TEXTS = 1024  # of a bucket: each takes a row of results
FEWEST_TILES = 16  # with as many heads about one wave of programs, which need not be fewer


def bucket_of(size: Size) -> int | None:
    """The least bucket with room for so many tokens and texts, if there is one."""
    return next((b for b in BUCKETS if b >= size.tokens and most_texts(b) >= size.texts), None)


def most_texts(bucket: int) -> int:
    """Texts that a bucket has room for."""
    return min(bucket // 2, MOST_TEXTS)


def shortest_texts(bucket: int) -> int:
    """The least length of which texts that fill the bucket are not too many for it."""
    return -(-bucket // most_texts(bucket))


def bucket_inputs(bucket: int, config: AttentionConfig, tiles: int | None = None) -> Inputs:
    """Room for a bucket's tokens and texts, and for so many tiles to twice as many; None for any.

    Args:
        config: of the attention kernel, whose tiles they are.
    """
    texts = most_texts(bucket)
    most = most_tiles(bucket, texts, config.short, config.rows)
    return Inputs(bucket, texts, most if tiles is None else tile_class(tiles, most))


def tile_class(count: int, most: int) -> int:
    """`most`, halved while that leaves room for `count` and is not less than `FEWEST_TILES`."""
    while most // 2 >= max(count, FEWEST_TILES):
        most //= 2
    return most
