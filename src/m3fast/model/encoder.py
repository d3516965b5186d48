"""The encoder itself: XLM-RoBERTa on packed tokens, post-LN, no padding anywhere.

    x = LN(word[ids] + position[positions] + type)
    per layer:  x = LN(x + Wo attention(Wqkv x) + bo)
                x = LN(x + W2 gelu(W1 x + b1) + b2)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from m3fast.kernels.attention import varlen_attention
from m3fast.kernels.gelu import linear_gelu
from m3fast.kernels.int8 import Int8Table
from m3fast.kernels.layernorm import embed_layernorm
from m3fast.kernels.linear import linear
from m3fast.kernels.residual import linear_add_layernorm
from m3fast.model.encoder_int8 import encode_int8

if TYPE_CHECKING:
    import torch

    from m3fast.checkpoint.config import ModelConfig
    from m3fast.checkpoint.weights import Layer, SparseHead, Weights
    from m3fast.model.workspace import Tokens, Workspace


def encode(
    config: ModelConfig,
    weights: Weights,
    tokens: Tokens,
    space: Workspace,
    rows: torch.Tensor | None = None,
    head: SparseHead | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Hidden states of packed tokens, and the token weights of the sparse head.

    Args:
        space: buffers to compute in; the hidden states live there until its next use.
        rows: int64 [R], the only tokens whose last hidden states are wanted; None for all. The
            last layer then does its out projection and feed-forward for these alone.
        head: [1, H], the sparse head, fused with the last LayerNorm; None to leave it out.

    Returns:
        Last hidden states [T, H] or [R, H], in the dtype of the weights; relu(h . w + b) float32
        [T] or [R] where there is a head, else None.
    """
    if isinstance(weights.word, Int8Table) or isinstance(weights.position, Int8Table):
        return encode_int8(config, weights, tokens, space, rows, head)
    norm, hidden = weights.embedding_norm, config.hidden_size
    x = embed_layernorm(
        tokens.ids, tokens.positions, weights.word, weights.position, weights.type_row,
        norm.weight, norm.bias, config.layer_norm_eps,
        out=space.take("x", len(tokens.ids), hidden, weights.word),
        check_ids=tokens.plan is None,
    )  # fmt: skip
    for layer in weights.layers[:-1]:
        x, _ = _layer(config, layer, x, tokens, space)
    return _layer(config, weights.layers[-1], x, tokens, space, rows, head)


def _layer(
    config: ModelConfig,
    layer: Layer,
    x: torch.Tensor,
    tokens: Tokens,
    space: Workspace,
    rows: torch.Tensor | None = None,
    head: SparseHead | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    count, hidden = x.shape
    # One buffer serves both halves of a layer: what attention leaves is used up before the
    # feed-forward's wide activations are written.
    wide = space.take("wide", count, max(4 * hidden, config.ffn_size), x).view(-1)
    qkv = wide[: 3 * count * hidden].view(count, 3 * hidden)
    attended = wide[3 * count * hidden : 4 * count * hidden].view(count, hidden)
    # The first kernel of all waits for whatever wrote the weights, so others may begin early.
    linear(x, layer.qkv.weight, layer.qkv.bias, out=qkv, early=True)
    varlen_attention(
        qkv.view(count, 3, config.n_heads, config.head_dim),
        tokens.cu_seqlens,
        tokens.max_seqlen,
        out=attended,
        plan=tokens.plan,
        early=True,
    )
    if rows is not None:
        x, attended, count = x[rows], attended[rows], len(rows)
    projected = space.take("hidden", count, hidden, x)
    norm, eps = layer.attention_norm, config.layer_norm_eps
    x, _ = linear_add_layernorm(
        attended, layer.out.weight, layer.out.bias, x, norm.weight, norm.bias, eps,
        out=x, product=projected, early=True,
    )  # fmt: skip
    inner = wide[: count * config.ffn_size].view(count, config.ffn_size)
    linear_gelu(x, layer.up.weight, layer.up.bias, out=inner, early=True)
    norm = layer.output_norm
    return linear_add_layernorm(
        inner, layer.down.weight, layer.down.bias, x, norm.weight, norm.bias, eps,
        None if head is None else (head.weight[0], head.bias),
        out=x, product=projected, early=True,
    )  # fmt: skip
