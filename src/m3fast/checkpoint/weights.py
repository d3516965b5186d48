"""Files of a checkpoint -> weights of the packed encoder: checked, QKV fused, nothing spare.

Layouts: Hugging Face's XLM-RoBERTa, RoBERTa and BERT encoders, with BGE-M3's two head files beside
them (`colbert_linear.pt`, `sparse_linear.pt`) or without (dense-only models), and the modules that
sentence-transformers puts behind the pooling. The pooler and other training remnants are never
read.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from m3fast.checkpoint.folder import HEAD_FILES
from m3fast.checkpoint.modules import Dense, load_modules
from m3fast.checkpoint.sentence import Sentence
from m3fast.checkpoint.tensors import WORD_EMBEDDINGS, checked, load_pickle, moved, open_tensors
from m3fast.errors import CheckpointError
from m3fast.kernels.linear import Weight, pack_weight

if TYPE_CHECKING:
    from collections.abc import Callable

    from m3fast.checkpoint.config import ModelConfig

@dataclass(frozen=True, slots=True)
class Linear:
    """y = x @ weight.T + bias, with weight [out, in], perhaps packed, and bias [out]."""

    weight: Weight
    bias: torch.Tensor


@dataclass(frozen=True, slots=True)
class SparseHead:
    """weight [1, H] and bias [1] of the product that makes token weights."""

    weight: torch.Tensor
    bias: torch.Tensor


@dataclass(frozen=True, slots=True)
class Norm:
    """LayerNorm's weight [H] and bias [H]."""

    weight: torch.Tensor
    bias: torch.Tensor


@dataclass(frozen=True, slots=True)
class Layer:
    """One transformer layer: qkv [3H, H], out [H, H], up [F, H], down [H, F], two norms."""

    qkv: Linear
    out: Linear
    attention_norm: Norm
    up: Linear
    down: Linear
    output_norm: Norm


@dataclass(frozen=True, slots=True)
class Weights:
    """All that one forward pass reads, on one device, in one dtype.

    Attributes:
        word: [V, H]; position: [P, H]; type_row: [H], the row of token type 0.
        colbert: Linear [D, H], or None in a dense-only checkpoint.
        sparse: its head, or None in a dense-only checkpoint.
        modules: float32, from the pooled vector to the dense one, in order.
    """

    word: torch.Tensor
    position: torch.Tensor
    type_row: torch.Tensor
    embedding_norm: Norm
    layers: tuple[Layer, ...]
    colbert: Linear | None
    sparse: SparseHead | None
    modules: tuple[nn.Module, ...] = ()

    @property
    def dense_size(self) -> int:
        """Width of the dense vector."""
        sizes = [m.linear.out_features for m in self.modules if isinstance(m, Dense)]
        return sizes[-1] if sizes else self.word.shape[1]

    @property
    def colbert_size(self) -> int:
        """Width of a ColBERT vector, 0 in a dense-only checkpoint."""
        return self.colbert.weight.shape[0] if self.colbert else 0


def load_weights(
    path: Path,
    config: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    colbert_dim: int = -1,
    *,
    pack: bool = False,
) -> Weights:
    """Load, check and fuse the weights in a checkpoint's folder.

    Args:
        path: folder with model.safetensors or pytorch_model.bin, whole or sharded.
        config: its shape.
        device: where the weights go.
        dtype: floating dtype the weights are converted to.
        colbert_dim: rows expected in colbert_linear.pt; -1 takes what the file has.
        pack: bring the weights of linear layers into the order that the CPU's kernel reads, one
            by one, so that no second copy of the model is ever held.

    Raises:
        CheckpointError: a file or tensor is missing, unreadable, of another shape or type, or holds
            what is not finite in this dtype.
    """
    heads = [path / name for name in HEAD_FILES]
    missing = [file for file in heads if not file.exists()]
    if len(missing) == 1:
        raise CheckpointError(f"{missing[0]}: expected both head files or neither, found no file")
    colbert, sparse = None, None
    if not missing:
        rows = None if colbert_dim <= 0 else colbert_dim
        weight, bias = _load_head(heads[0], rows, config.hidden_size, device, dtype)
        colbert = _linear(weight, bias, pack)
        sparse = SparseHead(*_load_head(heads[1], 1, config.hidden_size, device, dtype))
    sentence = Sentence.from_dir(path)
    modules = load_modules(sentence.modules, config.hidden_size, device)
    with ExitStack() as stack:
        tensors = open_tensors(sentence.encoder, stack)

        def take(name: str, *shape: int) -> torch.Tensor:
            return tensors.take(name, shape, device, dtype)

        weights = _fuse(config, take, colbert, sparse, pack)
        return replace(weights, modules=modules)


def _fuse(
    c: ModelConfig,
    take: Callable[..., torch.Tensor],
    colbert: Linear | None,
    sparse: SparseHead | None,
    pack: bool,
) -> Weights:
    h, f = c.hidden_size, c.ffn_size

    def norm(name: str) -> Norm:
        return Norm(take(f"{name}.weight", h), take(f"{name}.bias", h))

    def linear(rows: int, cols: int, *names: str) -> Linear:
        """One layer, or several of the same input as one."""
        weights = [take(f"{name}.weight", rows, cols) for name in names]
        biases = [take(f"{name}.bias", rows) for name in names]
        if len(names) == 1:
            weight, bias = weights[0], biases[0]
        else:
            weight, bias = torch.cat(weights), torch.cat(biases)
        return _linear(weight, bias, pack)

    def layer(i: int) -> Layer:
        base = f"encoder.layer.{i}"
        qkv = [f"{base}.attention.self.{part}" for part in ("query", "key", "value")]
        return Layer(
            qkv=linear(h, h, *qkv),
            out=linear(h, h, f"{base}.attention.output.dense"),
            attention_norm=norm(f"{base}.attention.output.LayerNorm"),
            up=linear(f, h, f"{base}.intermediate.dense"),
            down=linear(h, f, f"{base}.output.dense"),
            output_norm=norm(f"{base}.output.LayerNorm"),
        )

    return Weights(
        word=take(WORD_EMBEDDINGS, c.vocab_size, h),
        position=take("embeddings.position_embeddings.weight", c.n_positions, h),
        type_row=take("embeddings.token_type_embeddings.weight", c.n_types, h)[0].clone(),
        embedding_norm=norm("embeddings.LayerNorm"),
        layers=tuple(layer(i) for i in range(c.n_layers)),
        colbert=colbert,
        sparse=sparse,
    )


def _linear(weight: torch.Tensor, bias: torch.Tensor, pack: bool) -> Linear:
    return Linear(pack_weight(weight) if pack else weight, bias)


def _load_head(
    file: Path, rows: int | None, cols: int, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    state = load_pickle(file)
    weight = checked(state.get("weight"), file, "weight", (rows, cols))
    bias = checked(state.get("bias"), file, "bias", (weight.shape[0],))
    return (
        moved(weight, file, "weight", device, dtype),
        moved(bias, file, "bias", device, dtype),
    )


