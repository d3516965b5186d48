"""Packed tokens through the encoder and the heads asked for: what every runner computes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from m3fast.model.encoder import encode
from m3fast.model.heads import colbert_head, dense_head, pooled_rows, word_rows

if TYPE_CHECKING:
    import torch

    from m3fast.checkpoint.config import ModelConfig
    from m3fast.checkpoint.weights import Weights
    from m3fast.model.workspace import Tokens, Workspace
    from m3fast.runner.base import HeadOptions, Outputs


class Computed(NamedTuple):
    """Outputs on the device of the weights; what was not asked for is None.

    Attributes:
        dense: float32 [N, width]; token_weights: float32 [T], before they become rows.
        colbert: float32 [T - number of CLS tokens, width].
    """

    dense: torch.Tensor | None
    token_weights: torch.Tensor | None
    colbert: torch.Tensor | None


def forward(
    config: ModelConfig,
    weights: Weights,
    tokens: Tokens,
    texts: torch.Tensor,
    cu_seqlens: torch.Tensor,
    outputs: Outputs,
    options: HeadOptions,
    space: Workspace,
    *,
    n_cls: int,
    dense: torch.Tensor | None = None,
    colbert: torch.Tensor | None = None,
) -> Computed:
    """The outputs asked for; nothing here waits for the device.

    Args:
        texts, cu_seqlens: int32 [T] and [N + 1] of `tokens`, on the device.
        n_cls: CLS tokens that `mcls` pools, or more.
        dense, colbert: where to write.
    """
    pooling, vectors = options.pooling, (options.normalize, options.truncate_dim)
    rows = pooled_rows(cu_seqlens, pooling, len(texts), n_cls)
    only = None if outputs.sparse or outputs.colbert else rows
    sparse = weights.sparse if outputs.sparse else None
    hidden, token_weights = encode(config, weights, tokens, space, only, sparse)
    vector = multi = None
    if outputs.dense:
        rows = rows if only is None else None
        vector = dense_head(hidden, rows, cu_seqlens, pooling, *vectors, dense, weights.modules)
    if outputs.colbert and (head := weights.colbert) is not None:
        most = len(texts) - n_cls if colbert is None else len(colbert)
        words = word_rows(texts, cu_seqlens, pooling, most)
        # The out projection's buffer is free again.
        product = space.take("hidden", len(hidden), weights.colbert_size, hidden)
        multi = colbert_head(hidden, head, texts, cu_seqlens, *vectors, product, colbert, words)
    return Computed(vector, token_weights, multi)
