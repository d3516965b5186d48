"""The vocabulary of m3fast-tiny: 26,000 of XLM-RoBERTa's 250,002 Unigram pieces.

    python scripts/tiny/tokenizer.py TOKENIZER.json SENTENCES.jsonl.gz OUT

Pieces keep their scores, order and pipeline, ids are renumbered in the same order. A script's
share is fixed below; within a script XLM-R's own scores decide, which are unigram log
probabilities over CommonCrawl in 100 languages, so a language with few sentences here (Thai,
Russian, Korean) fares as well as the others. What is left goes to the most frequent pieces of each
language of Common Voice in equal shares.
"""

from __future__ import annotations

import argparse
import gzip
import json
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

VOCAB = 26_000
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
# Latin serves a dozen of the languages, and XLM-R's scores there favour none of them.
BY_SCORE = {
    "LATIN": 5000,
    "CYRILLIC": 3000,
    "ARABIC": 2200,
    "THAI": 1600,
    "HANGUL": 1300,
    "CJK": 1500,
    "GREEK": 500,
    "DEVANAGARI": 500,
}
ALPHABETS = ("LATIN", "CYRILLIC", "ARABIC", "THAI", "DEVANAGARI", "GREEK", "HIRAGANA", "KATAKANA")
CHARACTER_COVERAGE = 0.995  # of a language's sentences, in single characters


def script(piece: str) -> str:
    """First word of the Unicode name shared by all letters and marks of a piece, or ''."""
    names = {
        unicodedata.name(c, "").split(" ")[0] for c in piece if unicodedata.category(c)[0] in "LM"
    }
    return names.pop() if len(names) == 1 else ""


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
    keep((i for i, piece in single if unicodedata.category(piece)[0] in "NPS"), limit=200)
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
        # One new piece per language and round: equal shares of what is left.
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


def small_files() -> dict[str, object]:
    """The tokenizer's other files in the hub's layout, by name."""
    names = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>"}
    names |= {"unk": "<unk>", "pad": "<pad>", "mask": "<mask>"}

    def added(content: str) -> dict[str, Any]:
        lstrip = content == "<mask>"
        flags = {"lstrip": lstrip, "normalized": False, "rstrip": False, "single_word": False}
        return {"content": content} | flags

    numbered = {**dict(enumerate(SPECIAL)), VOCAB - 1: "<mask>"}
    return {
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
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Trim XLM-RoBERTa's vocabulary.")
    for name in ("tokenizer", "sentences", "out"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args()
    sentences: dict[str, list[str]] = defaultdict(list)
    with gzip.open(args.sentences, "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            sentences[row["lang"]].append(row["text"])
    args.out.mkdir(parents=True, exist_ok=True)
    content = trim_tokenizer(args.tokenizer, dict(sentences))
    compact = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    (args.out / "tokenizer.json").write_text(compact, encoding="utf-8")
    for name, small in small_files().items():
        (args.out / name).write_text(json.dumps(small, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
