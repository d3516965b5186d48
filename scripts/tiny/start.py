"""The checkpoint that the training of m3fast-tiny starts from.

    python scripts/tiny/start.py DATA OUT

DATA holds the files of data.py and teacher.py, OUT the tokenizer of tokenizer.py.

A transformer that starts at random spends its first hours on what a bag of words knows. So the
word embeddings come first, by themselves: with u_i = LayerNorm(E_i), a text is

    d = sum_i softmax(8 w·u / sqrt(H))_i u_i

and E and w are fitted to the teacher's vectors, which takes a few minutes. Each E_i starts as the
teacher's vector of its piece. The weights of the encoder are then set so that its first pass gives
2d plus the constant vector of <s>: layers change next to nothing but the last, whose keys read w·u
and whose values are u. The sparse head reads the negative logarithm of a piece's frequency, which
E learns alongside.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from teacher import Teacher, texts_of
from tokenizer import SPECIAL, VOCAB, script
from tokenizers import Tokenizer

HIDDEN, LAYERS, HEADS, FFN, POSITIONS = 256, 4, 4, 512, 8194
SEED, BATCH, EPOCHS, LR = 20240205, 4096, 16, 5e-3
SHARPNESS = 8.0
FILES = ("pairs", "translations", "sentences")


def rarity(vocab: list[tuple[str, float]]) -> torch.Tensor:
    """float32 [V]: -log frequency of each piece, from about 0 for a script's most frequent to 1."""
    best: dict[str, list[float]] = defaultdict(list)
    for piece, score in vocab[len(SPECIAL) : -1]:
        best[script(piece.lstrip("▁"))].append(score)
    top = {name: float(np.mean(sorted(scores)[-40:])) for name, scores in best.items()}
    values = [(top.get(script(p.lstrip("▁")), 0.0) - score) / 6 for p, score in vocab]
    return torch.tensor(values).clamp(0.02, 1.2)


def fit(
    words: torch.Tensor, rare: torch.Tensor, ids: list[list[int]], teacher: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """E, w, and weight and bias of the sparse head."""
    random = np.random.default_rng(SEED)
    words = words.clone().requires_grad_()
    reader = torch.zeros(HIDDEN, requires_grad=True)
    head, shift = torch.zeros(HIDDEN, requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([words, reader, head, shift], lr=LR, betas=(0.9, 0.99))
    steps, step, began = EPOCHS * (len(ids) // BATCH), 0, time.time()
    for _ in range(EPOCHS):
        order = random.permutation(len(ids))
        for start in range(0, len(ids) - BATCH + 1, BATCH):
            rows = order[start : start + BATCH]
            for group in optimizer.param_groups:
                group["lr"] = LR * min(1, step / 20) * (1 + math.cos(math.pi * step / steps)) / 2
            lengths = torch.tensor([len(ids[i]) for i in rows])
            flat = torch.tensor([j for i in rows for j in ids[i]])
            offsets = F.pad(lengths.cumsum(0)[:-1], (1, 0))
            u = F.layer_norm(words, (HIDDEN,))
            weight = torch.exp(SHARPNESS * (u @ reader) / math.sqrt(HIDDEN))
            pooled = F.embedding_bag(flat, u, offsets, mode="sum", per_sample_weights=weight[flat])
            found = F.normalize(pooled, dim=-1)
            wanted = F.normalize(torch.from_numpy(teacher[rows].astype(np.float32)), dim=-1)
            cosine = (found * wanted).sum(1).mean()
            # What is near for the teacher shall be near: differences of all cosines of 1,024 texts.
            part = slice(0, 1024)
            apart = (found[part] @ found[part].T - wanted[part] @ wanted[part].T).square().mean()
            lexical = (u @ head / math.sqrt(HIDDEN) + shift - rare).square().mean()
            loss = 1 - cosine + 5 * apart + 0.3 * lexical
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step % 20 == 0:
                print(
                    f"{step}/{steps} cosine {cosine:.4f} apart {apart:.5f} "
                    f"rarity error {lexical.sqrt():.3f} {time.time() - began:.0f} s",
                    flush=True,
                )
    scale = 1 / math.sqrt(HIDDEN)
    return words.detach(), reader.detach() * scale, head.detach() * scale, shift.detach()


def encoder(
    words: torch.Tensor, reader: torch.Tensor, head: torch.Tensor, shift: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Tensors by Hugging Face's names, with the first pass that the top of this file describes."""
    random = torch.Generator().manual_seed(SEED)

    def normal(*shape: int, std: float) -> torch.Tensor:
        return torch.randn(*shape, generator=random) * std

    w: dict[str, torch.Tensor] = {}
    u = F.layer_norm(words, (HIDDEN,))
    # <s> and </s> like words of no meaning: they weigh next to nothing in the last layer.
    u[[0, 2]] = F.layer_norm(normal(2, HIDDEN, std=1.0) - 24 * reader, (HIDDEN,))
    u[1] = 0
    w["embeddings.word_embeddings.weight"] = u
    w["embeddings.position_embeddings.weight"] = normal(POSITIONS, HIDDEN, std=0.02)
    w["embeddings.token_type_embeddings.weight"] = torch.zeros(1, HIDDEN)
    norms = ["embeddings.LayerNorm"]
    for i in range(LAYERS):
        layer, last = f"encoder.layer.{i}", i == LAYERS - 1
        attention = f"{layer}.attention.self"
        for name in ("query", "key", "value"):
            w[f"{attention}.{name}.weight"] = normal(HIDDEN, HIDDEN, std=HIDDEN**-0.5)
            w[f"{attention}.{name}.bias"] = torch.zeros(HIDDEN)
        out = f"{layer}.attention.output"
        w[f"{out}.dense.weight"] = normal(HIDDEN, HIDDEN, std=0.1 * HIDDEN**-0.5)
        if last:
            size = HIDDEN // HEADS
            w[f"{attention}.query.weight"] *= 0.1
            w[f"{attention}.key.weight"] *= 0.1
            # The first dimension of each head: a constant query, a key that reads w·u.
            w[f"{attention}.query.bias"][::size] = math.sqrt(size)
            w[f"{attention}.key.weight"][::size] = SHARPNESS * reader
            w[f"{attention}.value.weight"] = torch.eye(HIDDEN)
            w[f"{out}.dense.weight"] = 2 * torch.eye(HIDDEN)
        w[f"{out}.dense.bias"] = torch.zeros(HIDDEN)
        w[f"{layer}.intermediate.dense.weight"] = normal(FFN, HIDDEN, std=HIDDEN**-0.5)
        w[f"{layer}.intermediate.dense.bias"] = torch.zeros(FFN)
        w[f"{layer}.output.dense.weight"] = normal(HIDDEN, FFN, std=0.1 * FFN**-0.5)
        w[f"{layer}.output.dense.bias"] = torch.zeros(HIDDEN)
        norms += [f"{out}.LayerNorm", f"{layer}.output.LayerNorm"]
    for norm in norms:
        w[f"{norm}.weight"], w[f"{norm}.bias"] = torch.ones(HIDDEN), torch.zeros(HIDDEN)
    w["colbert_linear.weight"], w["colbert_linear.bias"] = torch.eye(HIDDEN), torch.zeros(HIDDEN)
    # Scores of texts that share their words come near 1 with weights of about 0.25.
    w["sparse_linear.weight"], w["sparse_linear.bias"] = 0.3 * head[None], 0.3 * shift
    return w


def small_files() -> dict[str, object]:
    """config.json and the pooling of sentence-transformers, by path."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    return {
        "config.json": {
            "architectures": ["XLMRobertaModel"],
            "attention_probs_dropout_prob": 0.0,
            "bos_token_id": 0,
            "eos_token_id": 2,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.0,
            "hidden_size": HIDDEN,
            "initializer_range": 0.02,
            "intermediate_size": FFN,
            "layer_norm_eps": 1e-05,
            "max_position_embeddings": POSITIONS,
            "model_type": "xlm-roberta",
            "num_attention_heads": HEADS,
            "num_hidden_layers": LAYERS,
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
        "sentence_bert_config.json": {"max_seq_length": 8192, "do_lower_case": False},
        "1_Pooling/config.json": {
            "word_embedding_dimension": HIDDEN,
            "pooling_mode_cls_token": True,
            "pooling_mode_mean_tokens": False,
        },
    }


def write(out: Path, tensors: dict[str, torch.Tensor]) -> None:
    """The checkpoint in float32, in the hub's layout."""
    (out / "1_Pooling").mkdir(parents=True, exist_ok=True)
    for name, content in small_files().items():
        (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    tensors = {name: t.contiguous().clone() for name, t in tensors.items()}
    for head in ("colbert_linear", "sparse_linear"):
        state = {part: tensors.pop(f"{head}.{part}") for part in ("weight", "bias")}
        torch.save(state, out / f"{head}.pt")
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description="The start of m3fast-tiny's training.")
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    file = args.out / "tokenizer.json"
    vocab: list[Any] = json.loads(file.read_text(encoding="utf-8"))["model"]["vocab"]
    tokenizer = Tokenizer.from_file(str(file))
    projection = np.load(args.data / "projection.npy")
    pieces = [piece.replace("▁", "") or piece for piece, _ in vocab]
    words = torch.from_numpy(Teacher().encode(pieces) @ projection)
    ids: list[list[int]] = []
    parts = []
    for name in FILES:
        texts = texts_of(args.data / f"{name}.jsonl")
        for i in range(0, len(texts), 10_000):
            encoded = tokenizer.encode_batch_fast(texts[i : i + 10_000], add_special_tokens=False)
            ids += [e.ids[:512] or [3] for e in encoded]
        parts.append(np.load(args.data / f"{name}.teacher.npy"))
    fitted = fit(words, rarity(vocab), ids, np.concatenate(parts))
    write(args.out, encoder(*fitted))


if __name__ == "__main__":
    main()
