"""The whole model in plain torch, in any dtype: the reference of `m3fast verify`.

Of an engine in int8 the weights are what its integers stand for, and what a linear layer reads is
rounded to as many bits as there.

It shares only weights and token ids with model/, on purpose.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from m3fast.kernels import native
from m3fast.kernels.int8 import Int8Weight, group
from m3fast.kernels.linear import unpack_weight
from m3fast.kernels.reference import pack_ref
from m3fast.kernels.reference_int8 import quantize_rows_ref, unquantized_ref
from m3fast.model.mcls import CLS_EVERY

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from m3fast import Embeddings, Engine
    from m3fast.types import TokenIds

    # By head: dense [N, H], sparse [N, V], colbert [sum of n - 1, D], float64.
    Vectors = dict[str, NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Peaks:
    """Largest absolute activations of one layer; `channel` is where its hidden state has it."""

    qkv: float
    ffn: float
    hidden: float
    channel: int


def plain_vectors(
    engine: Engine, tokens: TokenIds, dtype: torch.dtype
) -> tuple[Vectors, list[Peaks]]:
    """Outputs of the engine's model computed in `dtype`, and the peaks of its layers.

    Weights are converted one layer at a time, so float64 costs little memory.
    """
    ends: list[int] = tokens.offsets.tolist()
    texts = [tokens.ids[a:b].tolist() for a, b in pairwise(ends)]
    config, device = engine.config, engine.device
    ids, positions, *_ = pack_ref(texts, range(len(texts)), config.position_pad_id)
    ids, positions = ids.long().to(device), positions.long().to(device)
    with torch.inference_mode():
        hidden, peaks = _encode(engine, ids, positions, ends, dtype)
        return _heads(engine, hidden, ids, ends), peaks


def engine_vectors(found: Embeddings) -> Vectors:
    """The engine's own outputs in the same shape."""
    vectors: Vectors = {}
    if found.dense is not None:
        vectors["dense"] = found.dense.astype(np.float64)
    if found.sparse is not None:
        vectors["sparse"] = found.sparse.to_scipy().toarray().astype(np.float64)
    if found.colbert is not None:
        vectors["colbert"] = found.colbert.values.astype(np.float64)
    return vectors


def _encode(
    engine: Engine, ids: torch.Tensor, positions: torch.Tensor, ends: list[int], dtype: torch.dtype
) -> tuple[torch.Tensor, list[Peaks]]:
    weights, heads, eps = engine.runner.weights, engine.config.n_heads, engine.config.layer_norm_eps

    def norm(x: torch.Tensor, part: Any) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], part.weight.to(dtype), part.bias.to(dtype), eps)

    def attend(qkv: torch.Tensor) -> torch.Tensor:
        """One text: [L, 3·H] -> [L, H]."""
        q, k, v = qkv.view(len(qkv), 3, heads, -1).permute(1, 2, 0, 3)  # each [heads, L, D]
        scores = torch.softmax(q @ k.transpose(1, 2) * q.shape[-1] ** -0.5, -1)
        return (scores @ v).transpose(0, 1).reshape(len(qkv), -1)

    x = weights.word[ids].to(dtype) + weights.position[positions].to(dtype)
    x = norm(x + weights.type_row.to(dtype), weights.embedding_norm)
    peaks: list[Peaks] = []
    before = weights.embedding_norm
    for layer in weights.layers:
        qkv = _linear(x, layer.qkv, before)
        attended = torch.cat([attend(qkv[a:b]) for a, b in pairwise(ends)])
        x = norm(x + _linear(attended, layer.out), layer.attention_norm)
        up = _linear(x, layer.up, layer.attention_norm)
        x = norm(x + _linear(F.gelu(up), layer.down), layer.output_norm)
        before = layer.output_norm
        channel = int(x.abs().amax(0).argmax())
        peaks.append(Peaks(_peak(qkv), _peak(up), _peak(x), channel))
    return x, peaks


def _heads(engine: Engine, hidden: torch.Tensor, ids: torch.Tensor, ends: list[int]) -> Vectors:
    weights, spans = engine.runner.weights, list(pairwise(ends))
    first, last = torch.tensor(ends[:-1]), torch.tensor(ends[1:]) - 1
    pooling = engine.options.pooling
    if pooling == "mean":
        pooled = torch.stack([hidden[a:b].mean(0) for a, b in spans])
    elif pooling == "mcls":
        pooled = torch.stack([hidden[a:b:CLS_EVERY].mean(0) for a, b in spans])
    else:
        pooled = hidden[first if pooling == "cls" else last]
    pooled = pooled.double()
    for module in weights.modules:
        pooled = copy.deepcopy(module).double()(pooled)
    if engine.options.normalize:
        pooled = F.normalize(pooled, dim=-1)
    vectors = {"dense": _double(pooled)}
    if weights.sparse is not None and weights.colbert is not None:
        sparse, colbert = (
            _linear(hidden, head).double() for head in (weights.sparse, weights.colbert)
        )
        rows = torch.zeros(len(spans), engine.config.vocab_size, dtype=torch.float64)
        for row, (a, b) in zip(rows, spans, strict=True):
            row.scatter_reduce_(0, ids[a:b].cpu(), sparse[a:b, 0].relu().cpu(), "amax")
        rows[:, sorted(engine.tokenizer.dropped_ids)] = 0
        vectors["sparse"] = rows.numpy()
        step = CLS_EVERY if pooling == "mcls" else len(hidden)
        kept = torch.cat([part[1:] for a, b in spans for part in colbert[a:b].split(step)])
        vectors["colbert"] = _double(F.normalize(kept, dim=-1))
    return vectors


def _linear(x: torch.Tensor, part: Any, before: Any = None) -> torch.Tensor:
    """A layer; in int8 its bias stands for the shift of the LayerNorm `before` too."""
    dtype = x.dtype
    if isinstance(part.weight, Int8Weight):
        lib = native.library()
        bits = lib.int8_bits() if lib else 8
        x = x if before is None else x - before.bias.to(dtype)
        x = unquantized_ref(*quantize_rows_ref(x, bits, group()), group()).to(dtype)
    return F.linear(x, unpack_weight(part.weight).to(dtype), part.bias.to(dtype))


def _peak(x: torch.Tensor) -> float:
    return float(x.abs().max())


def _double(x: torch.Tensor) -> NDArray[np.float64]:
    return x.double().cpu().numpy()
