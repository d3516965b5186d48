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
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from m3fast.checkpoint.folder import HEAD_FILES
from m3fast.checkpoint.modules import Dense, load_modules
from m3fast.checkpoint.sentence import Sentence
from m3fast.checkpoint.tensors import WORD_EMBEDDINGS, checked, load_pickle, moved, open_tensors
from m3fast.errors import CheckpointError
from m3fast.kernels.int8 import Int8Table, holds, pack_int8, quantize_table, stacked, times
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

    In int8 that is the dtype of the tables and of linear layers, the colbert head included, but for
    those that eight bits do not hold; the rest has the dtype of the residual stream.

    Attributes:
        word: [V, H]; position: [P, H]; type_row: [H], the row of token type 0.
        colbert: Linear [D, H], or None in a dense-only checkpoint.
        sparse: its head, or None in a dense-only checkpoint.
        modules: float32, from the pooled vector to the dense one, in order.
    """

    word: torch.Tensor | Int8Table
    position: torch.Tensor | Int8Table
    type_row: torch.Tensor
    embedding_norm: Norm
    layers: tuple[Layer, ...]
    colbert: Linear | None
    sparse: SparseHead | None
    modules: tuple[nn.Module, ...] = ()

    @property
    def dtype(self) -> torch.dtype:
        """torch.int8, or the floating dtype of all."""
        return torch.int8 if isinstance(self.word, Int8Table) else self.word.dtype

    def float_tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Tables of words and positions, where these are floats."""
        if isinstance(self.word, Int8Table) or isinstance(self.position, Int8Table):
            raise TypeError("weights: expected floats, found int8")
        return self.word, self.position

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
    int8: bool = False,
) -> Weights:
    """Load, check and fuse the weights in a checkpoint's folder.

    Args:
        path: folder with model.safetensors or pytorch_model.bin, whole or sharded.
        config: its shape.
        device: where the weights go.
        dtype: floating dtype the weights are converted to; an int8 checkpoint's too.
        colbert_dim: rows expected in colbert_linear.pt; -1 takes what the file has.
        pack: bring the weights of linear layers into the order that the CPU's kernel reads, one
            by one, so that no second copy of the model is ever held.
        int8: linear layers and tables in int8, on the CPU; `dtype` is that of the rest.

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
        made = quantize_table(weight) if int8 else None
        fine = made is not None and holds(made, weight)
        colbert = _int8(made, bias) if made and fine else Linear(_packed(weight, pack), bias)
        sparse = SparseHead(*_load_head(heads[1], 1, config.hidden_size, device, dtype))
    sentence = Sentence.from_dir(path)
    modules = load_modules(sentence.modules, config.hidden_size, device)
    with ExitStack() as stack:
        tensors = open_tensors(sentence.encoder, stack)

        def take(name: str, *shape: int) -> torch.Tensor:
            return tensors.take(name, shape, device, dtype)

        def small(name: str, *shape: int) -> torch.Tensor:
            """A norm or a bias: beside int8 in fp32, as its kernels read them."""
            return tensors.take(name, shape, device, torch.float32 if int8 else dtype)

        def table(name: str, rows: int, cols: int) -> torch.Tensor | Int8Table:
            return tensors.table(name, (rows, cols)) if int8 else take(name, rows, cols)

        def linear(rows: int, cols: int, *names: str, shift: torch.Tensor | None = None) -> Linear:
            """One layer, or several of the same input as one; bytes come without `shift`."""
            biases = [small(f"{name}.bias", rows) for name in names]
            bias = torch.cat(biases) if len(names) > 1 else biases[0]
            if int8:
                made = [tensors.linear(f"{name}.weight", (rows, cols)) for name in names]
                fine = [table for table in made if table is not None]
                if len(fine) == len(names):
                    return _int8(stacked(fine), bias, shift)
            parts = [take(f"{name}.weight", rows, cols) for name in names]
            return Linear(_packed(torch.cat(parts) if len(parts) > 1 else parts[0], pack), bias)

        weights = _fuse(config, take, small, table, linear, colbert, sparse)
        return replace(weights, modules=modules)


class Listed(NamedTuple):
    """What is read of an encoder's files, by name and shape.

    Attributes:
        floats: biases, norms, the rows of token types.
        tables: of words and positions.
        linears: weights that are multiplied as one.
    """

    floats: dict[str, tuple[int, ...]]
    tables: dict[str, tuple[int, int]]
    linears: list[dict[str, tuple[int, int]]]


def listed(config: ModelConfig) -> Listed:
    """What `load_weights` reads, but for the heads."""
    found, nothing = Listed({}, {}, []), torch.empty(0)

    def take(name: str, *shape: int) -> torch.Tensor:
        found.floats[name] = shape
        return torch.empty(shape)

    def table(name: str, rows: int, cols: int) -> torch.Tensor:
        found.tables[name] = rows, cols
        return nothing

    def linear(rows: int, cols: int, *names: str, shift: torch.Tensor | None = None) -> Linear:
        found.floats.update({f"{name}.bias": (rows,) for name in names})
        found.linears.append({f"{name}.weight": (rows, cols) for name in names})
        return Linear(nothing, nothing)

    _fuse(config, take, take, table, linear, None, None)
    return found


def _fuse(
    c: ModelConfig,
    take: Callable[..., torch.Tensor],
    small: Callable[..., torch.Tensor],
    table: Callable[..., torch.Tensor | Int8Table],
    linear: Callable[..., Linear],
    colbert: Linear | None,
    sparse: SparseHead | None,
) -> Weights:
    h, f = c.hidden_size, c.ffn_size

    def norm(name: str) -> Norm:
        return Norm(small(f"{name}.weight", h), small(f"{name}.bias", h))

    def layer(i: int, before: Norm) -> Layer:
        base = f"encoder.layer.{i}"
        qkv = [f"{base}.attention.self.{part}" for part in ("query", "key", "value")]
        between = norm(f"{base}.attention.output.LayerNorm")
        return Layer(
            qkv=linear(h, h, *qkv, shift=before.bias),
            out=linear(h, h, f"{base}.attention.output.dense"),
            attention_norm=between,
            up=linear(f, h, f"{base}.intermediate.dense", shift=between.bias),
            down=linear(h, f, f"{base}.output.dense"),
            output_norm=norm(f"{base}.output.LayerNorm"),
        )

    embedding_norm = norm("embeddings.LayerNorm")
    layers: list[Layer] = []
    for i in range(c.n_layers):
        layers.append(layer(i, layers[-1].output_norm if layers else embedding_norm))
    return Weights(
        word=table(WORD_EMBEDDINGS, c.vocab_size, h),
        position=table("embeddings.position_embeddings.weight", c.n_positions, h),
        type_row=take("embeddings.token_type_embeddings.weight", c.n_types, h)[0].clone(),
        embedding_norm=embedding_norm,
        layers=tuple(layers),
        colbert=colbert,
        sparse=sparse,
    )


def _int8(table: Int8Table, bias: torch.Tensor, shift: torch.Tensor | None = None) -> Linear:
    wide = bias.float()
    return Linear(pack_int8(table), wide if shift is None else wide + times(table, shift))


def _packed(weight: torch.Tensor, pack: bool) -> Weight:
    return pack_weight(weight) if pack else weight


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
