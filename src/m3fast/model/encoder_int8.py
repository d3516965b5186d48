"""The encoder in eight bits: what a product reads is made in bytes by the operation before it.

Residual stream and attention stay in the floating dtype of the LayerNorms, and so does a layer that
eight bits do not hold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from m3fast.kernels.attention import varlen_attention
from m3fast.kernels.gelu import linear_gelu
from m3fast.kernels.int8 import (
    Int8Rows,
    Int8Weight,
    linear_gelu_int8,
    linear_int8,
    quantize_rows,
)
from m3fast.kernels.layernorm_int8 import add_layernorm_int8, embed_layernorm_int8
from m3fast.kernels.linear import linear

if TYPE_CHECKING:
    from m3fast.checkpoint.config import ModelConfig
    from m3fast.checkpoint.weights import Layer, Linear, SparseHead, Weights
    from m3fast.model.workspace import Tokens, Workspace


class Room(NamedTuple):
    """Buffers of a layer, for so many tokens [T].

    Attributes:
        small: what a product reads, of width H; inner: of the feed-forward's width.
        qkv: [T, 3H]; attended, projected: [T, H].
    """

    small: Int8Rows
    inner: Int8Rows
    qkv: torch.Tensor
    attended: torch.Tensor
    projected: torch.Tensor

    @classmethod
    def take(cls, space: Workspace, config: ModelConfig, count: int, like: torch.Tensor) -> Room:
        hidden = config.hidden_size
        return cls(
            space.take_rows("bytes", count, hidden),
            space.take_rows("inner", count, config.ffn_size),
            space.take("wide", count, 3 * hidden, like),
            space.take("attended", count, hidden, like),
            space.take("hidden", count, hidden, like),
        )


def encode_int8(
    config: ModelConfig,
    weights: Weights,
    tokens: Tokens,
    space: Workspace,
    rows: torch.Tensor | None = None,
    head: SparseHead | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """As `m3fast.model.encoder.encode`, of weights in int8."""
    norm, like, count = weights.embedding_norm, weights.type_row, len(tokens.ids)
    room = Room.take(space, config, count, like)
    x, _ = embed_layernorm_int8(
        tokens.ids, tokens.positions, weights.word, weights.position, like,
        norm.weight, norm.bias, config.layer_norm_eps,
        out=space.take("x", count, config.hidden_size, like), rows=room.small,
    )  # fmt: skip
    last = weights.layers[-1]
    for layer in weights.layers:
        _attend(config, layer, x, tokens, room)
        attended = room.attended
        if layer is last and rows is not None:
            x, attended = x[rows], attended[rows]
            room = Room.take(space, config, len(rows), like)
        _finish(config, layer, x, attended, room)
    if head is None:
        return x, None
    return x, torch.relu(x.float() @ head.weight[0].float() + head.bias.float())


def _attend(
    config: ModelConfig, layer: Layer, x: torch.Tensor, tokens: Tokens, room: Room
) -> None:
    """Attention of x, which stands in `room.small` too."""
    qkv = room.qkv
    if isinstance(layer.qkv.weight, Int8Weight):
        linear_int8(room.small, layer.qkv.weight, layer.qkv.bias, out=qkv)
    else:
        linear(x, layer.qkv.weight, layer.qkv.bias, out=qkv)
    varlen_attention(
        qkv.view(len(qkv), 3, config.n_heads, config.head_dim),
        tokens.cu_seqlens,
        tokens.max_seqlen,
        out=room.attended,
    )


def _finish(
    config: ModelConfig, layer: Layer, x: torch.Tensor, attended: torch.Tensor, room: Room
) -> None:
    """The rest of a layer, into x and `room.small`."""
    eps, y = config.layer_norm_eps, room.projected
    if isinstance(layer.out.weight, Int8Weight):
        quantize_rows(attended, room.small)
        linear_int8(room.small, layer.out.weight, layer.out.bias, out=y)
    else:
        linear(attended, layer.out.weight, layer.out.bias, out=y)
    norm = layer.attention_norm
    add_layernorm_int8(y, x, None, norm.weight, norm.bias, eps, out=x, rows=room.small)
    up, down = layer.up, layer.down
    if isinstance(up.weight, Int8Weight) and isinstance(down.weight, Int8Weight):
        linear_gelu_int8(room.small, up.weight, up.bias, room.inner)
        linear_int8(room.inner, down.weight, down.bias, out=y)
    else:
        linear(_gelu(room.small, x, up), down.weight, down.bias, out=y)
    norm = layer.output_norm
    add_layernorm_int8(y, x, None, norm.weight, norm.bias, eps, out=x, rows=room.small)


def _gelu(small: Int8Rows, x: torch.Tensor, up: Linear) -> torch.Tensor:
    """What up or down takes in floats, as eight bits do not hold one of them."""
    if isinstance(up.weight, Int8Weight):
        return linear_gelu_int8(small, up.weight, up.bias).float().to(x.dtype)
    return linear_gelu(x, up.weight, up.bias)
