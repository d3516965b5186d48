"""Inputs of the rows: random checkpoints in full or small size, and texts of chosen lengths."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from hashlib import file_digest, sha256
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

import m3fast

EMBEDDED = Path(m3fast.__file__).parent / "data" / "m3fast-tiny"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
# Outside the repository: 24 layers take 1.2 GB, and `git clean` should not cost a minute.
CACHE = Path(tempfile.gettempdir()) / "m3fast-bench"
VERSION = 5  # of the bytes that `checkpoint` writes


def _floats(path: Path) -> Path:
    """The folder, or of one in int8 its float16 form, made once for each content."""
    from m3fast.checkpoint.config import ModelConfig
    from m3fast.checkpoint.quantize import dequantize

    if not ModelConfig.from_dir(path).int8:
        return path
    digest = sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        with open(file, "rb") as opened:
            digest.update(file_digest(opened, sha256).digest())
    whole = CACHE / f"floats-{digest.hexdigest()[:16]}"
    if not whole.is_dir():
        CACHE.mkdir(exist_ok=True)
        making = Path(tempfile.mkdtemp(dir=CACHE))
        dequantize(path, making / path.name, torch.float16)
        _keep(making, whole)
    return whole / path.name


def _keep(making: Path, path: Path) -> None:
    try:
        os.replace(making, path)
    except OSError:  # another run was first; its bytes are the same
        shutil.rmtree(making)


TINY = _floats(EMBEDDED)  # what peers read


@dataclass(frozen=True)
class Shape:
    """Size of an XLM-R encoder; heads have 64 dimensions as in BGE-M3."""

    layers: int
    hidden: int = 1024
    widening: int = 4  # of the FFN

    @property
    def ffn(self) -> int:
        return self.widening * self.hidden

    @property
    def heads(self) -> int:
        return self.hidden // 64

    def __str__(self) -> str:
        return f"{self.layers} x {self.hidden}"


OUTPUTS = ("dense", "sparse", "colbert")
MIXES = ("chat", "passages", "documents", "mixed")


def encoder_work(
    shape: Shape, lengths: Sequence[int], outputs: Sequence[str] = OUTPUTS
) -> float:
    """Floating-point operations of texts of these lengths: products of linears and attention.

    Dense vectors alone need all of the last layer's K and V, and the rest of it for <s> only.
    """
    tokens, hidden = sum(lengths), shape.hidden
    up_down = 2 * shape.widening
    linears = 2 * tokens * (4 + up_down) * hidden**2  # Q, K and V 3, out 1
    attention = 4 * hidden * sum(n * n for n in lengths)
    heads = {"dense": 0, "sparse": 2 * tokens * hidden, "colbert": 2 * tokens * hidden**2}
    work = shape.layers * (linears + attention) + sum(heads[name] for name in outputs)
    if set(outputs) == {"dense"}:
        spared = tokens - len(lengths)
        work -= 2 * spared * (2 + up_down) * hidden**2 + attention - 4 * hidden * tokens
    return float(work)


def weight_bytes(shape: Shape, itemsize: int, outputs: Sequence[str] = OUTPUTS) -> float:
    """Bytes of all weights that every call reads; of the embeddings it reads some rows only."""
    hidden = shape.hidden
    widening = shape.widening
    layer = (4 + 2 * widening) * hidden**2 + (9 + widening) * hidden  # biases 5 and up, norms 4
    heads = {"dense": 0, "sparse": hidden + 1, "colbert": hidden**2 + hidden}
    return float(itemsize * (shape.layers * layer + sum(heads[name] for name in outputs)))


def mix(name: str, tokens: int, seed: int = 0, longest: int = 8192) -> list[int]:
    """Lengths of random texts that sum to `tokens`: the last one is cut.

    Args:
        name: chat (5 to 40 tokens), passages (mean 180, 20 to 512), documents (a quarter of
            `longest`, to `longest`) or mixed: 60 % chat, 37 % passages, 3 % documents by count.
        longest: cap of every length.
    """
    if name not in MIXES:
        raise ValueError(f"mix: expected one of {', '.join(MIXES)}, found {name!r}")
    if tokens < 3 or longest < 8:
        raise ValueError(f"mix: {tokens} tokens in texts of at most {longest}: too few")
    random = np.random.default_rng(seed)
    lengths: list[int] = []
    left = tokens
    while left:
        kind = name if name != "mixed" else MIXES[random.choice(3, p=(0.6, 0.37, 0.03))]
        if kind == "chat":
            length = int(random.integers(5, 41))
        elif kind == "passages":
            length = int(min(max(random.gamma(3, 60), 20), 512))
        else:
            length = int(random.integers(max(longest // 4, 3), longest + 1))
        length = min(length, longest, left)
        # <s>, a word and </s> are the shortest text: no rest of less than 3.
        if 0 < left - length < 3:
            length = length - 3 if length > 5 else left
        lengths.append(length)
        left -= length
    return lengths


def quantized(path: Path) -> Path:
    """A checkpoint's folder of `m3fast quantize`, made once; of `TINY` the one that is shipped."""
    from m3fast.checkpoint.quantize import quantize

    if path == TINY != EMBEDDED:
        return EMBEDDED
    out = CACHE / f"{path.name}-int8"
    if not out.is_dir():
        CACHE.mkdir(exist_ok=True)
        quantize(path, out)
    return out


def checkpoint(shape: Shape) -> Path:
    """A random fp32 checkpoint with m3fast-tiny's tokenizer, made once, the same on each machine.

    Weights keep activations at unit scale, so that no head saturates and softmax is not flat.
    """
    path = CACHE / f"v{VERSION}-{shape.layers}x{shape.hidden}"
    if path.is_dir():
        return path
    CACHE.mkdir(exist_ok=True)
    making = Path(tempfile.mkdtemp(dir=CACHE))
    for name in TOKENIZER_FILES:
        shutil.copyfile(TINY / name, making / name)
    config = json.loads((TINY / "config.json").read_text())
    config |= {
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.ffn,
        "torch_dtype": "float32",
    }
    (making / "config.json").write_text(json.dumps(config))
    state = random_encoder(shape, config["vocab_size"], config["max_position_embeddings"])
    for head in ("colbert_linear", "sparse_linear"):
        torch.save({k: state.pop(f"{head}.{k}") for k in ("weight", "bias")}, making / f"{head}.pt")
    save_file(state, making / "model.safetensors", metadata={"format": "pt"})
    _keep(making, path)
    return path


def random_encoder(shape: Shape, vocab: int, positions: int) -> dict[str, torch.Tensor]:
    """Tensors of the encoder and of both heads by their names in the hub's files."""
    seed = shape.layers * 100_003 + shape.hidden
    made: dict[str, Future[torch.Tensor]] = {}

    def normal(name: str, *size: int, std: float, mean: float = 0.0) -> None:
        # Drawn one by one within a tensor: 24 layers are 320 million.
        random = torch.Generator().manual_seed(seed * 1_009 + len(made))
        made[name] = pool.submit(torch.empty(size).normal_, mean, std, generator=random)

    def linear(name: str, rows: int, cols: int) -> None:
        normal(f"{name}.weight", rows, cols, std=cols**-0.5)
        normal(f"{name}.bias", rows, std=0.1)

    def norm(name: str) -> None:
        normal(f"{name}.weight", shape.hidden, std=0.1, mean=1.0)
        normal(f"{name}.bias", shape.hidden, std=0.1)

    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    for name, rows in (("word", vocab), ("position", positions), ("token_type", 1)):
        normal(f"embeddings.{name}_embeddings.weight", rows, shape.hidden, std=0.5)
    norm("embeddings.LayerNorm")
    for i in range(shape.layers):
        layer = f"encoder.layer.{i}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            linear(f"{layer}.attention.{part}", shape.hidden, shape.hidden)
        norm(f"{layer}.attention.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", shape.ffn, shape.hidden)
        linear(f"{layer}.output.dense", shape.hidden, shape.ffn)
        norm(f"{layer}.output.LayerNorm")
    linear("colbert_linear", shape.hidden, shape.hidden)
    linear("sparse_linear", 1, shape.hidden)
    with pool:
        return {name: tensor.result() for name, tensor in made.items()}


@cache
def words() -> tuple[str, ...]:
    """Latin words that are one token each, so that a text's length in tokens can be chosen."""
    vocab = json.loads((TINY / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    pieces = [piece[1:] for piece, _ in vocab if piece.startswith("▁")]
    found = tuple(p for p in pieces if p.isascii() and p.isalpha() and len(p) > 2)
    if len(found) < 500:
        raise RuntimeError(f"m3fast-tiny's tokenizer: 500 plain words expected, found {len(found)}")
    return found


def texts(lengths: list[int], seed: int) -> list[str]:
    """Random texts of exactly these lengths in tokens, <s> and </s> included."""
    rng, known = np.random.default_rng(seed), np.array(words())
    return [" ".join(rng.choice(known, n - 2)) for n in lengths]


def made_up_texts(count: int, n_words: int, seed: int) -> list[str]:
    """Texts of words that no vocabulary holds, two or three tokens or more each."""
    rng = np.random.default_rng(seed)
    parts = np.array(words())
    return [
        " ".join("".join(parts[row]) for row in rng.integers(len(parts), size=(n_words, 2)))
        for _ in range(count)
    ]


def ragged_lengths(count: int, low: int = 7, high: int = 331) -> list[int]:
    """`count` lengths from low to high, many short and few long: mean near a third of `high`.

    With the defaults 24 of them hold 2,558 tokens, and padding them all to 331 triples that.
    """
    steep = 2.35
    rest = max(count - 1, 1)
    lengths = [round(low + (high - low) * (i / rest) ** steep) for i in range(count)]
    order = np.random.default_rng(0).permutation(count)
    return [lengths[i] for i in order]


def padding_ratio(lengths: list[int], batch: int | None = None) -> float:
    """Positions / real tokens when texts are sorted by length and padded batch by batch."""
    batch = batch or len(lengths)
    longest = sorted(lengths, reverse=True)
    chunks = [longest[i : i + batch] for i in range(0, len(longest), batch)]
    return sum(len(chunk) * chunk[0] for chunk in chunks) / sum(lengths)


def queries(count: int, tokens: int) -> str:
    """So many queries in the words of a row's name."""
    return f"one query of {tokens} tokens" if count == 1 else f"{count} queries of {tokens} tokens"
