"""MCLS: a CLS before every further stretch of a long text; their mean is the dense vector.

For long documents (arXiv 2402.03216, section 3). In the sequence that the encoder sees, places
0, 256, 512, … of a text hold a CLS. So where they stand follows from a text's length alone, never
from ids: a literal `<s>` in a text is none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from m3fast.types import TokenIds

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from m3fast.checkpoint.config import Pooling

    Counts = TypeVar("Counts", NDArray[np.integer[Any]], torch.Tensor)

CLS_EVERY = 256  # tokens of a stretch, its CLS included, as in the paper


def cls_counts(lengths: Counts) -> Counts:
    """CLS tokens [N] of texts with so many tokens [N], these included."""
    return (lengths + (CLS_EVERY - 1)) // CLS_EVERY


def colbert_counts(lengths: Counts, pooling: Pooling) -> Counts:
    """Multi-vectors [N] of texts with so many tokens [N]: one per token but the CLS tokens."""
    return lengths - (cls_counts(lengths) if pooling == "mcls" else 1)


def plain_limit(max_length: int) -> int:
    """Most tokens of a text as it was, its one CLS included, so that `insert_cls` keeps the limit.

    A CLS with nothing after it stands for nothing: 257 tokens are never made, and a limit of 257
    is one of 256.
    """
    stretches, rest = divmod(max_length, CLS_EVERY)
    return 1 + stretches * (CLS_EVERY - 1) + max(0, rest - 1)


def insert_cls(tokens: TokenIds, cls_id: int) -> TokenIds:
    """The same texts with `cls_id` at places 256, 512, … of each that has tokens to follow it."""
    stretch = CLS_EVERY - 1
    more = np.maximum(tokens.lengths - 2, 0) // stretch  # [N], beside the first
    ends = np.cumsum(more)
    if not len(ends) or ends[-1] == 0:
        return tokens
    turn = np.arange(1, ends[-1] + 1) - np.repeat(ends - more, more)  # 1, 2, … within a text
    places = np.repeat(tokens.offsets[:-1] + 1, more) + turn * stretch
    ids = np.insert(tokens.ids, places, cls_id)
    offsets = tokens.offsets + np.concatenate([[0], ends])
    return TokenIds(ids, offsets, tokens.truncated)
