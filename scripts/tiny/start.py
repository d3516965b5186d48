"""The checkpoint that the training of m3fast-tiny starts from: a part of multilingual-e5-small.

    python scripts/tiny/start.py E5 DATA OUT [--steps N] [--layers 1,3,5,...]

E5 is the folder that e5.py writes, DATA holds the files of data.py and teacher.py, OUT those of
tokenizer.py. Of the word embeddings the rows of the pieces are taken, of the layers some, and the
512 positions follow each other again and again up to 8,192.

A stack with every other layer missing computes nothing of use, but it learns quickly what to do
when each layer is told: the hidden state of each token behind a layer shall be that which the whole
stack has behind the last layer that this one stands for, and the first token's last state shall
point where the teacher's vector does (e5 takes the mean of all). The sparse head meanwhile reads
how rare a piece is. The multi-vector head starts as it is in e5: without one.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from teacher import Role, texts_of
from tokenizer import SPECIAL, VOCAB, script
from tokenizers import Tokenizer

from m3fast.model.packing import pack_texts
from m3fast.train.model import Model
from m3fast.types import PackedBatch, Selection, TokenIds

POSITIONS, TABLE = 8192, 512
LAYERS = (1, 3, 5, 7, 9, 11)
SEED, STEPS, TOKENS, LR, EMBEDDING_LR, WARMUP = 20261128, 260, 16_384, 6e-4, 3e-4, 20
LONGEST = 192  # tokens of a text
FILES = {"pairs": 0.6, "translations": 0.15, "sentences": 0.25}
CLS, RARITY = 3.0, 0.3  # weights of these losses beside the hidden states'


def rarity(vocab: list[tuple[str, float]]) -> torch.Tensor:
    """float32 [V]: -log frequency of each piece, from about 0 for a script's most frequent to 1."""
    best: dict[str, list[float]] = defaultdict(list)
    for piece, score in vocab[len(SPECIAL) : -1]:
        best[script(piece.lstrip("▁"))].append(score)
    top = {name: float(np.mean(sorted(scores)[-40:])) for name, scores in best.items()}
    values = [(top.get(script(p.lstrip("▁")), 0.0) - score) / 6 for p, score in vocab]
    return torch.tensor(values).clamp(0.02, 1.2)


def cut(e5: Path, pieces: np.ndarray, layers: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Tensors by Hugging Face's names: some rows, some layers, positions as often as needed."""
    whole = {k: t.float() for k, t in load_file(e5 / "model.safetensors").items()}
    w = {k: t for k, t in whole.items() if k.startswith("embeddings.LayerNorm")}
    w["embeddings.word_embeddings.weight"] = whole["embeddings.word_embeddings.weight"][pieces]
    table = whole["embeddings.position_embeddings.weight"]
    # The first place is the first token's alone, so it does not come again.
    places = [0, *(1 + i % (TABLE - 1) for i in range(POSITIONS - 1))]
    w["embeddings.position_embeddings.weight"] = F.pad(table[places], (0, 0, 2, 0))
    w["embeddings.token_type_embeddings.weight"] = whole["embeddings.token_type_embeddings.weight"][
        :1
    ]
    for i, old in enumerate(layers):
        prefix = f"encoder.layer.{old}."
        w |= {
            k.replace(prefix, f"encoder.layer.{i}."): t
            for k, t in whole.items()
            if k.startswith(prefix)
        }
    hidden = table.shape[1]
    w["colbert_linear.weight"], w["colbert_linear.bias"] = torch.eye(hidden), torch.zeros(hidden)
    w["sparse_linear.weight"], w["sparse_linear.bias"] = torch.zeros(1, hidden), torch.zeros(1)
    return w


def small_files(e5: dict[str, Any], layers: int) -> dict[str, object]:
    """config.json and the pooling of sentence-transformers, by path."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    taken = ("hidden_size", "intermediate_size", "num_attention_heads")
    return {
        "config.json": {
            "architectures": ["XLMRobertaModel"],
            "attention_probs_dropout_prob": 0.0,
            "bos_token_id": 0,
            "eos_token_id": 2,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.0,
            **{name: e5[name] for name in taken},
            "initializer_range": 0.02,
            "layer_norm_eps": e5["layer_norm_eps"],
            "max_position_embeddings": POSITIONS + 2,
            "model_type": "xlm-roberta",
            "num_hidden_layers": layers,
            "pad_token_id": 1,
            "position_embedding_type": "absolute",
            "torch_dtype": "float16",
            "type_vocab_size": 1,
            "vocab_size": VOCAB,
        },
        "modules.json": [
            {"idx": i, "name": str(i), "path": p, "type": f"sentence_transformers.models.{t}"}
            for i, (p, t) in enumerate(modules)
        ],
        "sentence_bert_config.json": {"max_seq_length": POSITIONS, "do_lower_case": False},
        "1_Pooling/config.json": {
            "word_embedding_dimension": e5["hidden_size"],
            "pooling_mode_cls_token": True,
            "pooling_mode_mean_tokens": False,
        },
    }


def write(out: Path, tensors: dict[str, torch.Tensor], files: dict[str, object]) -> None:
    """The checkpoint in float32, in the hub's layout."""
    (out / "1_Pooling").mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    tensors = {name: t.contiguous().clone() for name, t in tensors.items()}
    for head in ("colbert_linear", "sparse_linear"):
        state = {part: tensors.pop(f"{head}.{part}") for part in ("weight", "bias")}
        torch.save(state, out / f"{head}.pt")
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


class Texts:
    """Texts of like length at random, as token ids with and without the teacher's prefix."""

    def __init__(self, data: Path, out: Path) -> None:
        self.random = np.random.default_rng(SEED)
        self.tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
        self.tokenizer.enable_truncation(LONGEST)
        content = json.loads((out / "tokenizer.json").read_text(encoding="utf-8"))
        self.vocab: list[tuple[str, float]] = content["model"]["vocab"]
        self.prefixes = {p: self.tokenizer.encode(p).ids[1:-1] for p in ("query: ", "passage: ")}
        self.files: list[tuple[list[Role], np.ndarray]] = []
        for name in FILES:
            roles = texts_of(data / f"{name}.jsonl")
            self.files.append((roles, np.load(data / f"{name}.teacher.npy", mmap_mode="r")))

    def batch(self) -> tuple[list[Role], torch.Tensor]:
        roles, vectors = self.files[self.random.choice(len(FILES), p=list(FILES.values()))]
        begin = int(self.random.integers(len(roles)))
        size = len(roles[begin].text.encode())
        chosen: list[int] = []
        total = 0
        for i in self.random.permutation(len(roles)):
            bytes_ = min(len(roles[i].text.encode()), 4 * LONGEST)
            if 0.9 < bytes_ / max(1, min(size, 4 * LONGEST)) < 1.1:
                chosen.append(int(i))
                total += 8 + bytes_ // 4
                if total > TOKENS:
                    break
        return [roles[i] for i in chosen], torch.from_numpy(vectors[chosen].astype(np.float32))

    def rows(self, roles: list[Role]) -> tuple[list[list[int]], list[list[int]], torch.Tensor]:
        """Ids without the prefix and with it; of the latter, which tokens are of the texts."""
        ours = [e.ids for e in self.tokenizer.encode_batch_fast([r.text for r in roles])]
        theirs: list[list[int]] = []
        kept: list[bool] = []
        for ids, role in zip(ours, roles, strict=True):
            prefix = self.prefixes[role.prefix]
            theirs.append([ids[0], *prefix, *ids[1:]])
            kept += [False] * (1 + len(prefix)) + [True] * (len(ids) - 1)
        return ours, theirs, torch.tensor(kept)


def packed(rows: list[list[int]], model: Model) -> PackedBatch:
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    ids = np.concatenate([np.array(row, np.int32) for row in rows])
    tokens = TokenIds(ids, offsets, np.zeros(len(rows), bool))
    return pack_texts([Selection(tokens, np.arange(len(rows)))], model.config)


def distil(student: Model, whole: Model, texts: Texts, layers: tuple[int, ...], steps: int) -> None:
    """Teach the student the hidden states of the whole stack, and the teacher's vectors."""
    rare = rarity(texts.vocab)
    tables = ("embeddings.word", "embeddings.position")
    groups: list[dict[str, Any]] = [
        {"params": [], "peak": LR},
        {"params": [], "peak": EMBEDDING_LR},
    ]
    for name, tensor in student.tensors().items():
        groups[name in tables]["params"].append(tensor)
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    spread: list[torch.Tensor] = []
    began, seen = time.time(), 0
    mean: dict[str, float] = defaultdict(float)
    for step in range(1, steps + 1):
        roles, vectors = texts.batch()
        ours, theirs, kept = texts.rows(roles)
        wanted: list[torch.Tensor] = []
        with torch.inference_mode():
            whole.encode(packed(theirs, whole), True, wanted)
        found: list[torch.Tensor] = []
        batch = packed(ours, student)
        outputs = student.encode(batch, True, found)
        first = torch.ones(batch.n_tokens, dtype=torch.bool)
        first[torch.from_numpy(batch.cu_seqlens[:-1]).long()] = False
        losses: dict[str, torch.Tensor] = {}
        for i, (mine, layer) in enumerate(zip(found, layers, strict=True)):
            other = wanted[layer][kept].clone()
            if len(spread) == i:
                spread.append(other.std(0))
            losses[f"layer {i}"] = ((mine[first] - other) / spread[i]).square().mean()
        losses["cls"] = 1 - (outputs.dense * vectors).sum(1).mean()
        ids = torch.from_numpy(batch.ids).long()
        head = student.weights.sparse
        assert head is not None
        read = (found[-1] @ head.weight[0] + head.bias)[first]
        losses["rarity"] = (read - 0.3 * rare[ids[first]]).square().mean()
        weights = {"cls": CLS, "rarity": RARITY}
        total = sum(weights.get(name, 1 / len(layers)) * loss for name, loss in losses.items())
        assert isinstance(total, torch.Tensor)
        for group in optimizer.param_groups:
            fall = (1 + math.cos(math.pi * step / steps)) / 2
            group["lr"] = group["peak"] * min(1, step / WARMUP) * max(0.05, fall)
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_([t for g in groups for t in g["params"]], 1.0)
        optimizer.step()
        seen += batch.n_tokens
        for name, loss in losses.items():
            mean[name] += loss.item() / 20
        if step % 20 == 0:
            shown = " ".join(f"{name} {value:.3f}" for name, value in mean.items())
            rate = seen / (time.time() - began)
            print(f"{step}/{steps} {shown} {rate:,.0f} tokens/s", flush=True)
            mean.clear()


def main() -> None:
    parser = argparse.ArgumentParser(description="The start of m3fast-tiny's training.")
    parser.add_argument("e5", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--layers", default=",".join(map(str, LAYERS)))
    args = parser.parse_args()
    layers = tuple(int(i) for i in args.layers.split(","))
    e5 = json.loads((args.e5 / "config.json").read_text(encoding="utf-8"))
    pieces = np.load(args.out / "pieces.npy")
    whole = args.out / "whole"
    every = tuple(range(e5["num_hidden_layers"]))
    for folder, chosen in ((whole, every), (args.out, layers)):
        write(folder, cut(args.e5, pieces, chosen), small_files(e5, len(chosen)))
    cpu = torch.device("cpu")
    student = Model(args.out, cpu)
    torch.manual_seed(SEED)
    texts = Texts(args.data, args.out)
    distil(student, Model(whole, cpu), texts, layers, args.steps)
    student.save(whole, torch.float32)
    shutil.copytree(whole, args.out, dirs_exist_ok=True)
    shutil.rmtree(whole)


if __name__ == "__main__":
    main()
