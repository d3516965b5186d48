"""The encoder in eight bits: what a product reads is made in bytes by the operation before it.

Residual stream and attention stay in the floating dtype of the LayerNorms, and so does a layer that
eight bits do not hold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from m3fast.kernels.attention import varlen_attention
from m3fast.kernels.gelu import linear_gelu
from m3fast.kernels.int8 import Int8Weight, linear_gelu_int8, linear_int8
from m3fast.kernels.layernorm_int8 import add_layernorm_int8, embed_layernorm_int8
from m3fast.kernels.linear import linear

if TYPE_CHECKING:
    from m3fast.checkpoint.config import ModelConfig
    from m3fast.checkpoint.weights import Layer, Linear, SparseHead, Weights
    from m3fast.kernels.int8 import Int8Rows
    from m3fast.model.workspace import Tokens, Workspace


def encode_int8(
    config: ModelConfig,
    weights: Weights,
    tokens: Tokens,
    space: Workspace,
    rows: torch.Tensor | None = None,
    head: SparseHead | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """As `m3fast.model.encoder.encode`, of weights in int8."""
    norm, hidden, count = weights.embedding_norm, config.hidden_size, len(tokens.ids)
    x, small = embed_layernorm_int8(
        tokens.ids, tokens.positions, weights.word, weights.position, weights.type_row,
        norm.weight, norm.bias, config.layer_norm_eps,
        out=space.take("x", count, hidden, weights.type_row),
        rows=space.take_rows("bytes", count, hidden),
    )  # fmt: skip
    for layer in weights.layers[:-1]:
        x, small = _layer(config, layer, x, small, tokens, space)
    x, _ = _layer(config, weights.layers[-1], x, small, tokens, space, rows)
    if head is None:
        return x, None
    wide = x.float() @ head.weight[0].float() + head.bias.float()
    return x, torch.relu(wide)


def _layer(
    config: ModelConfig,
    layer: Layer,
    x: torch.Tensor,
    small: Int8Rows,
    tokens: Tokens,
    space: Workspace,
    rows: torch.Tensor | None = None,
) -> tuple[torch.Tensor, Int8Rows]:
    count, hidden = x.shape
    qkv = space.take("wide", count, 3 * hidden, x)
    if isinstance(layer.qkv.weight, Int8Weight):
        linear_int8(small, layer.qkv.weight, layer.qkv.bias, out=qkv)
    else:
        linear(x, layer.qkv.weight, layer.qkv.bias, out=qkv)
    attended = varlen_attention(
        qkv.view(count, 3, config.n_heads, config.head_dim),
        tokens.cu_seqlens,
        tokens.max_seqlen,
        out=space.take("attended", count, hidden, x),
    )
    if rows is not None:
        x, attended, count = x[rows], attended[rows], len(rows)
    small = space.take_rows("bytes", count, hidden)
    projected = space.take("hidden", count, hidden, x)
    linear(attended, layer.out.weight, layer.out.bias, out=projected)
    norm, eps = layer.attention_norm, config.layer_norm_eps
    x, small = add_layernorm_int8(
        projected, x, None, norm.weight, norm.bias, eps, out=x, rows=small
    )
    up, down = layer.up, layer.down
    if isinstance(up.weight, Int8Weight) and isinstance(down.weight, Int8Weight):
        inner = space.take_rows("inner", count, config.ffn_size)
        linear_gelu_int8(small, up.weight, up.bias, inner)
        linear_int8(inner, down.weight, down.bias, out=projected)
    else:
        linear(_gelu(small, x, up), down.weight, down.bias, out=projected)
    norm = layer.output_norm
    return add_layernorm_int8(projected, x, None, norm.weight, norm.bias, eps, out=x, rows=small)


def _gelu(small: Int8Rows, x: torch.Tensor, up: Linear) -> torch.Tensor:
    """What up or down takes in floats, as eight bits do not hold one of them."""
    if isinstance(up.weight, Int8Weight):
        return linear_gelu_int8(small, up.weight, up.bias).float().to(x.dtype)
    return linear_gelu(x, up.weight, up.bias)
