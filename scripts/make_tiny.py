"""Rebuild the embedded default checkpoint `m3fast-tiny`, byte for byte.

    python scripts/make_tiny.py TOKENIZER.json SENTENCES.jsonl.gz [--out FOLDER]

TOKENIZER.json is the tokenizer of BAAI/bge-m3 (the XLM-RoBERTa vocabulary, 250,002 Unigram
pieces, MIT). SENTENCES.jsonl.gz holds one {"lang", "text"} a line: the sentence files of Mozilla
Common Voice (CC0), used for nothing but piece counts. The vocabulary is trimmed to 8,000 pieces,
keeping scores, order and pipeline; weights are random under a fixed seed and were never trained.
The model card, the licence note and FOLDER itself are kept where they exist.

The head files are zip archives whose bytes may change with the version of torch; the tensors in
them do not. Everything else depends on the two inputs alone.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

VOCAB, HIDDEN, LAYERS, HEADS, FFN, POSITIONS = 8000, 128, 2, 4, 512, 8194
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
SEED = 20240205
OUT = Path(__file__).parents[1] / "src/m3fast/data/m3fast-tiny"

# Scripts with few or no sentences to count: this many pieces each by XLM-R's own score instead,
# which is a unigram log probability over CommonCrawl.
BY_SCORE = {"CYRILLIC": 400, "THAI": 350, "HANGUL": 300, "DEVANAGARI": 350, "GREEK": 100}
ALPHABETS = ("LATIN", "CYRILLIC", "ARABIC", "THAI", "DEVANAGARI", "GREEK", "HIRAGANA", "KATAKANA")
# Of a language's text, in single characters: 0.985 costs every Latin language 10 % longer texts.
CHARACTER_COVERAGE = 0.97


def script(piece: str) -> str:
    """First word of the Unicode name shared by all letters and marks of a piece, or ''."""
    names = {
        unicodedata.name(c, "").split(" ")[0] for c in piece if unicodedata.category(c)[0] in "LM"
    }
    return names.pop() if len(names) == 1 else ""


def read_sentences(path: Path) -> dict[str, list[str]]:
    """Texts per language, in file order."""
    texts: dict[str, list[str]] = defaultdict(list)
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            texts[row["lang"]].append(row["text"])
    return dict(texts)


def ranked(counts: Counter[int]) -> list[int]:
    """Ids by falling count; equal counts in id order, so that no run differs from another."""
    return sorted(counts, key=lambda i: (-counts[i], i))


def frequent_characters(counts: Counter[str]) -> list[str]:
    """The most frequent characters that make up CHARACTER_COVERAGE of a language's text."""
    enough, seen, chosen = CHARACTER_COVERAGE * counts.total(), 0, []
    for character in sorted(counts, key=lambda c: (-counts[c], c)):
        if seen >= enough:
            break
        seen += counts[character]
        chosen.append(character)
    return chosen


def choose_pieces(
    tokenizer: Tokenizer, pieces: list[str], sentences: dict[str, list[str]]
) -> list[int]:
    """Ids of the pieces to keep, in XLM-R's order, special tokens excluded."""
    id_of = {piece: i for i, piece in enumerate(pieces)}
    kept = {id_of["▁"]}

    def keep(candidates: Iterable[int], limit: int | None = None) -> None:
        for i in candidates:
            if limit == 0 or len(kept) == VOCAB - len(SPECIAL) - 1:
                return
            if i not in kept and pieces[i] not in SPECIAL:
                kept.add(i)
                limit = None if limit is None else limit - 1

    keep(id_of[chr(c)] for c in range(33, 127) if chr(c) in id_of)
    single = [(i, piece) for i, piece in enumerate(pieces) if len(piece) == 1]
    # Digits, punctuation and signs of all scripts: quotation marks, danda, ideographic stops.
    keep((i for i, piece in single if unicodedata.category(piece)[0] in "NPS"), limit=150)
    for i, piece in single:
        # U+1E00 and above: Vietnamese letters; Latin beyond that is transliteration.
        if script(piece) in ALPHABETS and (piece < "ɐ" or piece > "Ͱ"):
            keep([i])

    by_language = {}
    for language, texts in sorted(sentences.items()):
        encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        by_language[language] = ranked(Counter(i for e in encodings for i in e.ids))
        normal = tokenizer.normalizer.normalize_str(" ".join(texts))
        keep(id_of[c] for c in frequent_characters(Counter(normal)) if c in id_of)

    for name, limit in BY_SCORE.items():
        keep((i for i, p in enumerate(pieces) if script(p.lstrip("▁")) == name), limit)
    queues = [iter(ids) for ids in by_language.values()]
    while queues and len(kept) < VOCAB - len(SPECIAL) - 1:
        # One new piece per language and round: sixteen equal shares of what is left.
        for queue in list(queues):
            fresh = next((i for i in queue if i not in kept), None)
            if fresh is None:
                queues.remove(queue)
            else:
                keep([fresh])
    return sorted(kept)


def trim_tokenizer(source: Path, sentences: dict[str, list[str]]) -> dict[str, Any]:
    """The content of tokenizer.json with VOCAB pieces, numbered as XLM-R numbers them."""
    content = json.loads(source.read_text(encoding="utf-8"))
    rows = content["model"]["vocab"]
    kept = choose_pieces(Tokenizer.from_file(str(source)), [p for p, _ in rows], sentences)
    content["model"]["vocab"] = [*rows[: len(SPECIAL)], *(rows[i] for i in kept), ["<mask>", 0.0]]
    for token in content["added_tokens"]:
        if token["content"] == "<mask>":
            token["id"] = VOCAB - 1
    return content


def random_weights() -> dict[str, np.ndarray]:
    """Tensors of an XLM-R encoder without pooler, and of the two heads, float16.

    Words weigh more than positions and layers change states little, so that the sparse and the
    multi-vector head match like words: lexical matching, with nothing learnt. The value path's
    gain of 1.2 squared lets the mean of a text reach its first token, the dense vector.
    """
    # RandomState: its stream is frozen by numpy's compatibility policy, a Generator's is not.
    rng = np.random.RandomState(SEED)
    weights: dict[str, np.ndarray] = {}

    def normal(name: str, *shape: int, std: float, mean: float = 0.0) -> None:
        weights[name] = (mean + std * rng.standard_normal(shape)).astype(np.float16)

    def linear(name: str, n_out: int, n_in: int, gain: float) -> None:
        normal(f"{name}.weight", n_out, n_in, std=gain / math.sqrt(n_in))
        normal(f"{name}.bias", n_out, std=0.02)

    def layer_norm(name: str) -> None:
        normal(f"{name}.weight", HIDDEN, std=0.1, mean=1.0)
        normal(f"{name}.bias", HIDDEN, std=0.05)

    normal("embeddings.word_embeddings.weight", VOCAB, HIDDEN, std=0.5)
    weights["embeddings.word_embeddings.weight"][1] = 0  # <pad>, as in XLM-R
    normal("embeddings.position_embeddings.weight", POSITIONS, HIDDEN, std=0.05)
    normal("embeddings.token_type_embeddings.weight", 1, HIDDEN, std=0.02)
    layer_norm("embeddings.LayerNorm")
    for i in range(LAYERS):
        layer = f"encoder.layer.{i}"
        for name, gain in (("query", 0.7), ("key", 0.7), ("value", 1.2)):
            linear(f"{layer}.attention.self.{name}", HIDDEN, HIDDEN, gain)
        linear(f"{layer}.attention.output.dense", HIDDEN, HIDDEN, 1.2)
        layer_norm(f"{layer}.attention.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", FFN, HIDDEN, 1.0)
        linear(f"{layer}.output.dense", HIDDEN, FFN, 0.5)
        layer_norm(f"{layer}.output.LayerNorm")
    linear("colbert_linear", HIDDEN, HIDDEN, 1.0)
    # Weights spread by 0.17 around 0.27 on the demo's passages: one token in twenty gets none.
    normal("sparse_linear.weight", 1, HIDDEN, std=0.15 / math.sqrt(HIDDEN))
    weights["sparse_linear.bias"] = np.array([0.35], np.float16)
    return weights


def config() -> dict[str, Any]:
    """config.json, XLM-R's keys and one of our own."""
    return {
        "architectures": ["XLMRobertaModel"],
        "attention_probs_dropout_prob": 0.1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": FFN,
        "layer_norm_eps": 1e-05,
        "m3fast_random_weights": True,
        "max_position_embeddings": POSITIONS,
        "model_type": "xlm-roberta",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "pad_token_id": 1,
        "position_embedding_type": "absolute",
        "torch_dtype": "float32",
        "type_vocab_size": 1,
        "use_cache": True,
        "vocab_size": VOCAB,
    }


def small_files() -> dict[str, object]:
    """The hub's other JSON files by path."""
    names = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>"}
    names |= {"unk": "<unk>", "pad": "<pad>", "mask": "<mask>"}

    def added(content: str) -> dict[str, Any]:
        lstrip = content == "<mask>"
        flags = {"lstrip": lstrip, "normalized": False, "rstrip": False, "single_word": False}
        return {"content": content} | flags

    numbered = {**dict(enumerate(SPECIAL)), VOCAB - 1: "<mask>"}
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    return {
        "config.json": config(),
        "special_tokens_map.json": {f"{k}_token": added(v) for k, v in names.items()},
        "tokenizer_config.json": {
            "added_tokens_decoder": {
                str(i): added(t) | {"special": True} for i, t in numbered.items()
            },
            **{f"{k}_token": v for k, v in names.items()},
            "clean_up_tokenization_spaces": True,
            "model_max_length": 8192,
            "tokenizer_class": "XLMRobertaTokenizer",
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


def write(out: Path, tokenizer: dict[str, Any]) -> None:
    """All files of the checkpoint but its model card and licence note."""
    (out / "1_Pooling").mkdir(parents=True, exist_ok=True)
    compact = json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":"))
    (out / "tokenizer.json").write_text(compact, encoding="utf-8")
    for name, content in small_files().items():
        (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    tensors = {name: torch.from_numpy(value) for name, value in random_weights().items()}
    for head in ("colbert_linear", "sparse_linear"):
        state = {part: tensors.pop(f"{head}.{part}") for part in ("weight", "bias")}
        torch.save(state, out / f"{head}.pt")
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description="Rebuild the checkpoint m3fast-tiny.")
    parser.add_argument("tokenizer", type=Path, help="tokenizer.json of BAAI/bge-m3")
    parser.add_argument("sentences", type=Path, help="gzipped JSON lines {lang, text}")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    sentences = read_sentences(args.sentences)
    write(args.out, trim_tokenizer(args.tokenizer, sentences))
    for path in sorted(p for p in args.out.rglob("*") if p.is_file()):
        print(f"{path.stat().st_size:>10,}  {path.relative_to(args.out)}")


if __name__ == "__main__":
    main()
