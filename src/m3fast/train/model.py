"""The encoder and its heads for training, in operations that autograd can follow.

Weights are those of `m3fast.checkpoint.weights`, the arithmetic is that of `m3fast.model`; a test
holds the two together. Tokens are packed but for attention, which pads the texts of one part to
their longest: parts are made of texts of like length.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from m3fast.checkpoint.config import ModelConfig, in_floats
from m3fast.checkpoint.folder import HEAD_FILES
from m3fast.checkpoint.weights import Linear, Norm, load_weights
from m3fast.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

    from m3fast.checkpoint.weights import Layer, Weights
    from m3fast.types import PackedBatch

COPIED = (
    *("tokenizer*", "special_tokens_map.json", "sentencepiece*", "vocab*", "merges.txt"),
    *("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"),
)

STAYS = 1.3  # padded rows per token up to which all layers keep them
PLAIN = 256  # tokens of the longest text whose attention is computed as plain products on a CPU


@dataclass(frozen=True, slots=True)
class HeadOutputs:
    """Outputs of packed texts, still attached to the graph.

    Attributes:
        dense: [n, H], L2-normalised.
        token_weights: fp32 [T], relu(h·w + b).
        vectors: [T, D], L2-normalised; the row of a text's first token stands for nothing.
    """

    dense: torch.Tensor
    token_weights: torch.Tensor
    vectors: torch.Tensor


class Model:
    """An encoder with BGE-M3's three heads, all weights float32 leaves, those of int8 as rounded.

    Raises:
        CheckpointError: no such checkpoint, one without the heads, or one that pools otherwise
            than by its first token.
    """

    def __init__(self, path: Path, device: torch.device, recompute_layers: bool = False) -> None:
        self.path, self.config = path, ModelConfig.from_dir(path)
        weights = load_weights(path, self.config, device, torch.float32)
        if weights.colbert is None or weights.sparse is None:
            raise CheckpointError(f"{path}: expected {' and '.join(HEAD_FILES)}, found neither")
        if self.config.pooling != "cls":
            found = self.config.pooling
            raise CheckpointError(f"{path}: pooling: expected 'cls', found {found!r}")
        if weights.modules:
            raise CheckpointError(
                f"{path}: modules.json: expected no weights behind the pooling, found a module's"
            )
        self.weights: Weights = weights
        self._recompute = recompute_layers
        for tensor in self.tensors().values():
            tensor.requires_grad_()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every weight by name; query, key and value are one."""
        w = self.weights
        word, position = w.float_tables()
        found = {"embeddings.word": word, "embeddings.position": position}
        found |= {"embeddings.type": w.type_row} | _named("embeddings.norm", w.embedding_norm)
        for i, layer in enumerate(w.layers):
            for part in ("qkv", "out", "attention_norm", "up", "down", "output_norm"):
                found |= _named(f"layers.{i}.{part}", getattr(layer, part))
        return found | _named("colbert", w.colbert) | _named("sparse", w.sparse)

    def encode(
        self, batch: PackedBatch, bf16: bool, states: list[torch.Tensor] | None = None
    ) -> HeadOutputs:
        """Outputs of packed texts; matrix products in bfloat16 if asked for.

        Args:
            states: takes the hidden states behind each layer, fp32 [T, H].
        """
        word, position = self.weights.float_tables()
        device = word.device
        ids, positions, cu_seqlens = (
            torch.from_numpy(a).to(device, torch.int64, non_blocking=True)
            for a in (batch.ids, batch.positions, batch.cu_seqlens)
        )
        w, eps = self.weights, self.config.layer_norm_eps
        narrow = torch.autocast(device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()
        with narrow:
            x = F.embedding(ids, word) + F.embedding(positions, position) + w.type_row
            x = _norm(x, w.embedding_norm, eps)
            pad = Padding(cu_seqlens, batch.max_seqlen, len(ids))
            x = pad.enter(x)
            for layer in w.layers:
                # fp32 between layers: bf16 sums lose what a small learning rate adds.
                args: tuple[Any, ...] = (layer, x, pad, self.config.n_heads, eps)
                x = (
                    checkpoint(_layer, *args, use_reentrant=False)
                    if self._recompute
                    else _layer(*args)
                )
                if states is not None:
                    states.append(pad.leave(x))
            x = pad.leave(x)
            vectors = _linear(x, w.colbert)
        head = w.sparse
        assert head is not None  # checked when made
        token_weights = torch.relu(x.float() @ head.weight[0] + head.bias)
        dense = F.normalize(x[cu_seqlens[:-1]].float(), dim=-1)
        return HeadOutputs(dense, token_weights, F.normalize(vectors.float(), dim=-1))

    def save(self, out: Path, dtype: torch.dtype = torch.float16) -> None:
        """Write a checkpoint in the hub's layout, tokenizer and other files as in the first.

        What stands in `out` under these names is replaced.
        """
        from safetensors.torch import save_file

        out.mkdir(parents=True, exist_ok=True)
        for pattern in COPIED:
            for file in self.path.glob(pattern):
                shutil.copyfile(file, out / file.name)
        if (self.path / "1_Pooling").is_dir():
            shutil.copytree(self.path / "1_Pooling", out / "1_Pooling", dirs_exist_ok=True)
        config = json.loads((self.path / "config.json").read_text(encoding="utf-8"))
        config.pop("m3fast_random_weights", None)
        config = in_floats(config, dtype)
        (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        tensors = {
            name: tensor.detach().to("cpu", dtype).contiguous().clone()
            for name, tensor in hugging_face_names(self.tensors(), self.config).items()
        }
        for file in HEAD_FILES:
            name = file.removesuffix(".pt")
            torch.save(
                {part: tensors.pop(f"{name}.{part}") for part in ("weight", "bias")}, out / file
            )
        save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
        # safetensors makes its files for the owner alone.
        shutil.copymode(out / "config.json", out / "model.safetensors")


class Padding:
    """Where packed tokens [T] of n texts stand in padded rows [n, L].

    Rows are packed between attentions, unless padding adds so little that it costs less than to
    pack and to pad them in each layer: then they are padded from the first layer to the last.
    """

    def __init__(self, cu_seqlens: torch.Tensor, longest: int, n_tokens: int) -> None:
        lengths = cu_seqlens.diff()
        self.shape = (len(lengths), longest)
        texts = torch.repeat_interleave(lengths, output_size=n_tokens)
        places = torch.arange(n_tokens, device=texts.device) - cu_seqlens[texts]
        self.slots = texts * longest + places
        # bool [n, 1, 1, L], True where there is a token; None where all are.
        even = n_tokens == len(lengths) * longest
        there = torch.arange(longest, device=texts.device) < lengths[:, None]
        self.mask = None if even else there[:, None, None]
        self._stays = len(lengths) * longest <= STAYS * n_tokens

    def enter(self, x: torch.Tensor) -> torch.Tensor:
        """Packed [T, C] to rows as layers take them."""
        return self._padded(x) if self._stays else x

    def leave(self, x: torch.Tensor) -> torch.Tensor:
        """The way back."""
        return x[self.slots] if self._stays else x

    def pad(self, x: torch.Tensor) -> torch.Tensor:
        """A layer's rows as [n, L, C]."""
        rows = x if self._stays else self._padded(x)
        return rows.view(*self.shape, x.shape[1])

    def unpad(self, x: torch.Tensor) -> torch.Tensor:
        """[n, L, C] as a layer's rows."""
        rows = x.reshape(-1, x.shape[2])
        return rows if self._stays else rows[self.slots]

    def _padded(self, x: torch.Tensor) -> torch.Tensor:
        n, longest = self.shape
        return x.new_zeros(n * longest, x.shape[1]).index_copy(0, self.slots, x)


def _layer(layer: Layer, x: torch.Tensor, pad: Padding, heads: int, eps: float) -> torch.Tensor:
    qkv = pad.pad(_linear(x, layer.qkv))
    n, longest, width = qkv.shape
    q, k, v = qkv.view(n, longest, 3, heads, width // 3 // heads).permute(2, 0, 3, 1, 4)
    # On a CPU the gradient of SDPA costs more than all else together; long texts need its memory.
    cpu, inference = x.device.type == "cpu", torch.is_inference_mode_enabled()
    plain = cpu and longest <= PLAIN and not inference
    attention = _plain_attention if plain else F.scaled_dot_product_attention
    attended = attention(q, k, v, attn_mask=pad.mask)
    attended = attended.transpose(1, 2).reshape(n, longest, width // 3)
    x = _norm(x + _linear(pad.unpad(attended), layer.out), layer.attention_norm, eps)
    inner = F.gelu(_linear(x, layer.up))
    return _norm(x + _linear(inner, layer.down), layer.output_norm, eps)


def _plain_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attn_mask: torch.Tensor | None
) -> torch.Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    return scores.softmax(-1).to(v.dtype) @ v


def _linear(x: torch.Tensor, layer: Linear | None) -> torch.Tensor:
    assert layer is not None and isinstance(layer.weight, torch.Tensor)  # never packed here
    return F.linear(x, layer.weight, layer.bias)


def _norm(x: torch.Tensor, norm: Norm, eps: float) -> torch.Tensor:
    return F.layer_norm(x.float(), x.shape[-1:], norm.weight, norm.bias, eps)


def _named(name: str, part: Any) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": part.weight, f"{name}.bias": part.bias}


def hugging_face_names(
    tensors: dict[str, torch.Tensor], config: ModelConfig
) -> dict[str, torch.Tensor]:
    """`Model.tensors` under the names of XLMRobertaModel's state dict, heads as head.part."""
    table = {"word": "word_embeddings", "position": "position_embeddings"}
    named = {f"embeddings.{b}.weight": tensors[f"embeddings.{a}"] for a, b in table.items()}
    types = tensors["embeddings.type"].expand(config.n_types, -1)
    named["embeddings.token_type_embeddings.weight"] = types
    parts = {"out": "attention.output.dense", "attention_norm": "attention.output.LayerNorm"}
    parts |= {"up": "intermediate.dense", "down": "output.dense", "output_norm": "output.LayerNorm"}
    for part in ("weight", "bias"):
        named[f"embeddings.LayerNorm.{part}"] = tensors[f"embeddings.norm.{part}"]
        for i in range(config.n_layers):
            qkv = tensors[f"layers.{i}.qkv.{part}"].chunk(3)
            for name, tensor in zip(("query", "key", "value"), qkv, strict=True):
                named[f"encoder.layer.{i}.attention.self.{name}.{part}"] = tensor
            for ours, theirs in parts.items():
                named[f"encoder.layer.{i}.{theirs}.{part}"] = tensors[f"layers.{i}.{ours}.{part}"]
        for head in ("colbert", "sparse"):
            named[f"{head}_linear.{part}"] = tensors[f"{head}.{part}"]
    return named
