"""Small random checkpoints in the hub's format, made for a test and thrown away with it."""

from __future__ import annotations

import atexit
import functools
import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

import m3fast

if TYPE_CHECKING:
    from collections.abc import Callable

TINY = Path(m3fast.__file__).parent / "data" / "m3fast-tiny"
TINY_CONFIG = json.loads((TINY / "config.json").read_text())
TINY_VOCAB, TINY_WIDTH = TINY_CONFIG["vocab_size"], TINY_CONFIG["hidden_size"]
SMALL_WIDTH = 64  # of `small_folder`
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")

TEXTS = [
    "What is BGE M3?",
    "",
    "   ",
    "BGE M3 is an embedding model supporting dense retrieval, lexical matching and multi-vectors.",
    "Der schnelle braune Fuchs springt über den faulen Hund, heute wie gestern.",
    "敏捷的棕色狐狸跳过了懒狗。今天天气很好，我们去公园散步吧。",
    "a literal <pad> in <s> a text </s> and <mask> and <unk> too <pad>",
    "สวัสดีชาวโลก วันนี้อากาศดีมาก",
    "the the the the same token again and again the the",
    "x",
    " ".join(f"word{i} number {i * 37}" for i in range(25)),
    "🙂 emoji and \u0000 NUL and \ufb01 ligature",
]


def make_checkpoint(
    path: Path,
    *,
    seed: int = 0,
    hidden: int = 40,
    heads: int = 5,
    layers: int = 2,
    ffn: int = 72,
    positions: int = 514,
    colbert_dim: int | None = None,
    m3_heads: bool = True,
    model_type: str = "xlm-roberta",
    safetensors: bool = True,
    prefix: str = "",
    pooling: str | None = None,
    tokenizer: Path = TINY,
    vocab: int = TINY_VOCAB,
    deep: bool = False,
) -> Path:
    """Write a random encoder, its biases and LayerNorms random too.

    Args:
        deep: weights that keep tokens and texts apart over 24 layers, where else all become one
            vector and no error shows; in bfloat16, each a stretch of the same random numbers.
    """
    path.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (tokenizer / name).exists():
            shutil.copyfile(tokenizer / name, path / name)
    config = {
        "model_type": model_type,
        "architectures": [{"bert": "BertModel", "roberta": "RobertaModel"}.get(
            model_type, "XLMRobertaModel")],
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": ffn,
        "vocab_size": vocab,
        "max_position_embeddings": positions,
        "type_vocab_size": 2 if model_type == "bert" else 1,
        "layer_norm_eps": 1e-5,
        "hidden_act": "gelu",
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
    }
    (path / "config.json").write_text(json.dumps(config))
    random = torch.Generator().manual_seed(seed)
    some = torch.randn(2**23 + 1 if deep else 0, generator=random)

    def rand(*shape: int, scale: float) -> torch.Tensor:
        if not deep:
            return torch.randn(*shape, generator=random) * scale
        count = math.prod(shape)
        first = int(torch.randint(2**22, (), generator=random))
        long = some if first + count <= len(some) else some.repeat(-(-(first + count) // len(some)))
        return (long[first : first + count] * scale).bfloat16().view(shape)

    state: dict[str, torch.Tensor] = {}

    shift = 0.02 if deep else 0.2
    sharp, quiet = (2.0, 0.3) if deep else (1.0, 1.0)  # attention; what a layer adds

    def linear(name: str, rows: int, cols: int, gain: float = 1.0) -> None:
        state[f"{name}.weight"] = rand(rows, cols, scale=cols**-0.5 * gain)
        state[f"{name}.bias"] = rand(rows, scale=shift)

    def norm(name: str) -> None:
        state[f"{name}.weight"] = 1 + rand(hidden, scale=0.2)
        state[f"{name}.bias"] = rand(hidden, scale=shift)

    state["embeddings.word_embeddings.weight"] = rand(vocab, hidden, scale=1.0)
    state["embeddings.position_embeddings.weight"] = rand(positions, hidden, scale=0.5)
    state["embeddings.token_type_embeddings.weight"] = rand(
        config["type_vocab_size"], hidden, scale=0.3
    )
    norm("embeddings.LayerNorm")
    for i in range(layers):
        base = f"encoder.layer.{i}"
        for part, gain in (("query", sharp), ("key", sharp), ("value", 1.0)):
            linear(f"{base}.attention.self.{part}", hidden, hidden, gain)
        linear(f"{base}.attention.output.dense", hidden, hidden, quiet)
        norm(f"{base}.attention.output.LayerNorm")
        linear(f"{base}.intermediate.dense", ffn, hidden)
        linear(f"{base}.output.dense", hidden, ffn, quiet)
        norm(f"{base}.output.LayerNorm")
    state = {prefix + name: tensor for name, tensor in state.items()}
    if safetensors:
        save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    else:
        torch.save(state, path / "pytorch_model.bin")
    if m3_heads:
        dim = colbert_dim or hidden
        colbert = {"weight": rand(dim, hidden, scale=hidden**-0.5), "bias": rand(dim, scale=0.1)}
        sparse = {"weight": rand(1, hidden, scale=hidden**-0.5), "bias": rand(1, scale=0.1)}
        torch.save(colbert, path / "colbert_linear.pt")
        torch.save(sparse, path / "sparse_linear.pt")
    if pooling is not None:
        (path / "1_Pooling").mkdir(exist_ok=True)
        chosen = {"cls": "cls_token", "mean": "mean_tokens", "last_token": "lasttoken"}[pooling]
        raw = {"word_embedding_dimension": hidden, f"pooling_mode_{chosen}": True}
        (path / "1_Pooling" / "config.json").write_text(json.dumps(raw))
    return path


@functools.cache
def small_folder() -> Path:
    """A random model where any will do, one per process; m3fast-tiny's tokenizer and limit."""
    made = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, made)
    return make_checkpoint(made / "small", hidden=SMALL_WIDTH, heads=4, positions=8194)


def edit_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of a checkpoint's model.safetensors in place."""
    file = path / "model.safetensors"
    state = load_file(file)
    change(state)
    save_file(state, file, metadata={"format": "pt"})


def overflowing(path: Path, word: str, value: float = 3e38) -> Path:
    """Give a word an embedding that is finite, and so large that what is made of it is not."""
    backend = Tokenizer.from_file(str(path / "tokenizer.json"))
    number = backend.token_to_id(f"\u2581{word}")
    edit_weights(path, lambda s: s["embeddings.word_embeddings.weight"][number].fill_(value))
    return path
