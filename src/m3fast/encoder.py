"""The encoder itself: XLM-RoBERTa on packed tokens, post-LN, no padding anywhere.

    x = LN(word[ids] + position[positions] + type)
    per layer:  x = LN(x + Wo attention(Wqkv x) + bo)
                x = LN(x + W2 gelu(W1 x + b1) + b2)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from m3fast.kernels.attention import varlen_attention
from m3fast.kernels.gelu import bias_gelu_
from m3fast.kernels.layernorm import add_layernorm, embed_layernorm
from m3fast.kernels.linear import linear

if TYPE_CHECKING:
    from m3fast.checkpoint import Layer, Weights
    from m3fast.config import ModelConfig


class Workspace:
    """Buffers that every layer and every batch use again.

    Fresh 40 MB activations would be mapped and zeroed by the kernel anew in each layer.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    def take(self, name: str, rows: int, cols: int, like: torch.Tensor) -> torch.Tensor:
        """Uninitialised [rows, cols] in the dtype and on the device of `like`."""
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < rows * cols or buffer.dtype != like.dtype:
            buffer = torch.empty(rows * cols, dtype=like.dtype, device=like.device)
            self._buffers[name] = buffer
        return buffer[: rows * cols].view(rows, cols)


def encode(
    config: ModelConfig,
    weights: Weights,
    ids: torch.Tensor,
    positions: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    space: Workspace,
    rows: torch.Tensor | None = None,
) -> torch.Tensor:
    """Hidden states of packed tokens.

    Args:
        ids: int32 [T]; positions: int32 [T]; cu_seqlens: int32 [N + 1].
        max_seqlen: longest text of the batch.
        space: buffers to compute in; the result does not live in it.
        rows: int64 [R], the only tokens whose last hidden states are wanted; None for all. The
            last layer then does its out projection and feed-forward for these alone.

    Returns:
        Last hidden states [T, H] or [R, H], in the dtype of the weights.
    """
    norm = weights.embedding_norm
    x = embed_layernorm(
        ids, positions, weights.word, weights.position, weights.type_row,
        norm.weight, norm.bias, config.layer_norm_eps,
    )  # fmt: skip
    last = len(weights.layers) - 1
    for i, layer in enumerate(weights.layers):
        x = _layer(config, layer, x, cu_seqlens, max_seqlen, space, rows if i == last else None)
    return x


def _layer(
    config: ModelConfig,
    layer: Layer,
    x: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    space: Workspace,
    rows: torch.Tensor | None,
) -> torch.Tensor:
    tokens, hidden = x.shape
    qkv = space.take("qkv", tokens, 3 * hidden, x)
    linear(x, layer.qkv.weight, layer.qkv.bias, out=qkv)
    attended = varlen_attention(
        qkv.view(tokens, 3, config.n_heads, config.head_dim),
        cu_seqlens,
        max_seqlen,
        out=space.take("attended", tokens, hidden, x),
    )
    if rows is not None:
        x, attended, tokens = x[rows], attended[rows], len(rows)
    # The biases of out, up and down ride in the next elementwise kernel.
    projected = space.take("hidden", tokens, hidden, x)
    linear(attended, layer.out.weight, out=projected)
    norm, eps = layer.attention_norm, config.layer_norm_eps
    x = add_layernorm(projected, x, layer.out.bias, norm.weight, norm.bias, eps, out=x)
    inner = space.take("inner", tokens, config.ffn_size, x)
    bias_gelu_(linear(x, layer.up.weight, out=inner), layer.up.bias)
    linear(inner, layer.down.weight, out=projected)
    norm = layer.output_norm
    return add_layernorm(projected, x, layer.down.bias, norm.weight, norm.bias, eps, out=x)
