"""What a checkpoint's config.json says about the encoder, validated once, then frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from m3fast.checkpoint.files import read_json
from m3fast.checkpoint.sentence import Pooling, Sentence
from m3fast.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

    import torch

# Layouts of Hugging Face encoders that differ only in how positions are numbered.
PADDED_POSITIONS = {"xlm-roberta": True, "roberta": True, "camembert": True, "bert": False}
# model_type of a checkpoint in int8, which no other library knows: transformers would read a known
# one's bytes as floats. BASE has the layout's own.
INT8_TYPE, BASE, QUANTIZATION = "m3fast-int8", "m3fast_model_type", "quantization_config"


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shape of an XLM-RoBERTa, RoBERTa or BERT encoder.

    Attributes:
        position_offset: row of the position table that a text's first token reads; pad_id + 1
            for (XLM-)RoBERTa, 0 for BERT.
        max_length: most tokens per text, special tokens included.
        pooling: which hidden states become the dense vector; `mcls` is the mean of a CLS every
            256 tokens (see mcls.py).
        random_weights: never trained, as the checkpoint says of itself by a key of m3fast's own.
        int8: the folder's weights are those that `m3fast quantize` makes.
    """

    model_type: str
    hidden_size: int
    n_layers: int
    n_heads: int
    ffn_size: int
    vocab_size: int
    n_positions: int
    n_types: int
    layer_norm_eps: float
    pad_id: int
    pooling: Pooling
    random_weights: bool = False
    int8: bool = False

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.n_heads

    @property
    def position_pad_id(self) -> int | None:
        """The id that positions skip, or None where positions are plain 0, 1, 2, … (BERT)."""
        return self.pad_id if PADDED_POSITIONS[self.model_type] else None

    @property
    def position_offset(self) -> int:
        return self.pad_id + 1 if PADDED_POSITIONS[self.model_type] else 0

    @property
    def max_length(self) -> int:
        return self.n_positions - self.position_offset

    @classmethod
    def from_dir(cls, path: Path) -> ModelConfig:
        """Read config.json and, where they are there, sentence-transformers' files.

        Raises:
            CheckpointError: a file is missing, is not JSON, lacks a field, or asks for something
                the encoder does not compute.
        """
        sentence = Sentence.from_dir(path)
        file = sentence.encoder / "config.json"
        raw = read_json(file)
        int8 = raw.get("model_type") == INT8_TYPE
        if not int8 and (found := raw.get(QUANTIZATION)) is not None:
            method = found.get("quant_method", found) if isinstance(found, dict) else found
            raise CheckpointError(
                f"{file}: {QUANTIZATION}: expected floats, or {INT8_TYPE!r} as model_type, "
                f"found {method!r:.100}"
            )
        key = BASE if int8 else "model_type"
        model_type = _field(raw, file, key, str)
        if model_type not in PADDED_POSITIONS:
            raise CheckpointError(
                f"{file}: {key}: expected one of {sorted(PADDED_POSITIONS)}, "
                f"found {model_type!r}"
            )
        for key, wanted in (("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
            if (found := raw.get(key, wanted)) != wanted:
                raise CheckpointError(f"{file}: {key}: expected {wanted!r}, found {found!r}")
        hidden, heads = _size(raw, file, "hidden_size"), _size(raw, file, "num_attention_heads")
        if hidden % heads:
            raise CheckpointError(
                f"{file}: hidden_size: expected a multiple of num_attention_heads = {heads}, "
                f"found {hidden}"
            )
        return cls(
            model_type=model_type,
            hidden_size=hidden,
            n_layers=_size(raw, file, "num_hidden_layers"),
            n_heads=heads,
            ffn_size=_size(raw, file, "intermediate_size"),
            vocab_size=_size(raw, file, "vocab_size"),
            n_positions=_size(raw, file, "max_position_embeddings"),
            n_types=_size(raw, file, "type_vocab_size"),
            layer_norm_eps=float(_field(raw, file, "layer_norm_eps", (float, int))),
            pad_id=_field(raw, file, "pad_token_id", int),
            pooling=sentence.pooling,
            random_weights=raw.get("m3fast_random_weights") is True,
            int8=int8,
        )


def in_floats(raw: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """config.json of the same model with its weights in a floating dtype, as the hub has it."""
    raw = {**raw}
    if raw.get("model_type") == INT8_TYPE:
        raw["model_type"] = raw.pop(BASE)
        raw.pop(QUANTIZATION, None)
    raw.pop("dtype", None)  # what transformers 5 calls torch_dtype
    return raw | {"torch_dtype": str(dtype).removeprefix("torch.")}


def _field(raw: dict[str, Any], file: Path, key: str, kind: type | tuple[type, ...]) -> Any:
    value = raw.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        wanted = kind.__name__ if isinstance(kind, type) else "number"
        raise CheckpointError(f"{file}: {key}: expected {wanted}, found {value!r}")
    return value


def _size(raw: dict[str, Any], file: Path, key: str) -> int:
    value = _field(raw, file, key, int)
    if value < 1:
        raise CheckpointError(f"{file}: {key}: expected a positive integer, found {value}")
    return value
