"""The vocabulary of m3fast-tiny: VOCAB of XLM-RoBERTa's 250,002 Unigram pieces.

    python scripts/tiny/tokenizer.py TOKENIZER.json OUT TEXTS...

Pieces keep their scores, order and pipeline, ids are renumbered in the same order. What counts is
how often a language needs a piece: SHARES say how much each language does, and its counts are, in
equal parts, of words by their frequency (wordfreq 3, CC BY-SA 4.0, cut into XLM-R's pieces), of
TEXTS ({"lang", "text"} a line, .gz or not), and for languages that have a script to themselves of
XLM-R's own scores, which are unigram log probabilities over CommonCrawl.

OUT gets the tokenizer's files, and pieces.npy: int64 [VOCAB], the id that XLM-R gives each piece.
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
from tokenizers import Tokenizer

VOCAB = 32_000
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
# English most; then those whose words take many forms.
SHARES = {"en": 3.0, "ru": 1.6, "de": 1.2, "pl": 1.2, "ar": 1.1, "tr": 1.1, "zh-TW": 0.7}
LANGUAGES = (
    *("ar", "de", "el", "en", "es", "fa", "fr", "hi", "id", "it", "ja"),
    *("ko", "nl", "pl", "pt", "ro", "ru", "th", "tr", "vi", "zh", "zh-TW"),
)
SCRIPTS = {"el": {"GREEK"}, "hi": {"DEVANAGARI"}, "ko": {"HANGUL"}, "th": {"THAI"}}
SCRIPTS |= {"ja": {"HIRAGANA", "KATAKANA"}, "zh": {"CJK"}, "ru": {"CYRILLIC"}}
SCRIPTS |= {"ar": {"ARABIC"}}
ALPHABETS = ("LATIN", "CYRILLIC", "ARABIC", "THAI", "DEVANAGARI", "GREEK", "HIRAGANA", "KATAKANA")
CHARACTER_COVERAGE = 0.9995  # of a language's texts, in single characters
WORDS = 60_000  # of wordfreq's lists


def script(piece: str) -> str:
    """First word of the Unicode name shared by all letters and marks of a piece, or ''."""
    names = {
        unicodedata.name(c, "").split(" ")[0] for c in piece if unicodedata.category(c)[0] in "LM"
    }
    return names.pop() if len(names) == 1 else ""


def frequent_characters(counts: Counter[str]) -> list[str]:
    """The most frequent characters that make up CHARACTER_COVERAGE of a language's text."""
    enough, seen, chosen = CHARACTER_COVERAGE * counts.total(), 0, []
    for character in sorted(counts, key=lambda c: (-counts[c], c)):
        if seen >= enough:
            break
        seen += counts[character]
        chosen.append(character)
    return chosen


def word_counts(tokenizer: Tokenizer, language: str) -> dict[int, float]:
    """Pieces of a language's words, each as often as the word; none where wordfreq has no list."""
    from wordfreq import available_languages, get_frequency_dict  # pyright: ignore

    if language not in available_languages("best") or language in ("ja", "zh"):
        return {}
    words = list(get_frequency_dict(language, "best").items())[:WORDS]
    counts: dict[int, float] = defaultdict(float)
    # Half of them as they begin a sentence, or a name.
    forms = [(w, f) for w, f in words] + [(w.title(), 0.3 * f) for w, f in words]
    encoded = tokenizer.encode_batch_fast([w for w, _ in forms], add_special_tokens=False)
    for encoding, (_, frequency) in zip(encoded, forms, strict=True):
        for i in encoding.ids:
            counts[i] += frequency
    return counts


def text_counts(tokenizer: Tokenizer, texts: list[str]) -> dict[int, float]:
    counts: dict[int, float] = defaultdict(float)
    for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False):
        for i in encoding.ids:
            counts[i] += 1
    return counts


def score_counts(vocab: list[tuple[str, float]], scripts: set[str]) -> dict[int, float]:
    """XLM-R's own probabilities of the pieces of some scripts."""
    return {
        i: math.exp(score)
        for i, (piece, score) in enumerate(vocab)
        if script(piece.lstrip("▁")) in scripts
    }


def choose_pieces(
    tokenizer: Tokenizer, vocab: list[tuple[str, float]], texts: dict[str, list[str]]
) -> list[int]:
    """Ids of the pieces to keep, in XLM-R's order, special tokens excluded."""
    pieces = [piece for piece, _ in vocab]
    id_of = {piece: i for i, piece in enumerate(pieces)}
    kept = {id_of["▁"]}

    def keep(candidates: Iterable[int], limit: int = VOCAB) -> None:
        for i in candidates:
            if limit == 0 or len(kept) == VOCAB - len(SPECIAL) - 1:
                return
            if i not in kept and pieces[i] not in SPECIAL:
                kept.add(i)
                limit -= 1

    keep(id_of[chr(c)] for c in range(33, 127) if chr(c) in id_of)
    single = [(i, piece) for i, piece in enumerate(pieces) if len(piece) == 1]
    # Digits, punctuation and signs of all scripts: quotation marks, danda, ideographic stops.
    keep((i for i, piece in single if unicodedata.category(piece)[0] in "NPS"), limit=200)
    for i, piece in single:
        # U+1E00 and above: Vietnamese letters; Latin beyond that is transliteration.
        if script(piece) in ALPHABETS and (piece < "ɐ" or piece > "Ͱ"):
            keep([i])
    value: dict[int, float] = defaultdict(float)
    for language in LANGUAGES:
        given = texts.get(language, [])
        normal = tokenizer.normalizer.normalize_str(" ".join(given))
        keep(id_of[c] for c in frequent_characters(Counter(normal)) if c in id_of)
        parts = [word_counts(tokenizer, language), text_counts(tokenizer, given)]
        parts.append(score_counts(vocab, SCRIPTS.get(language, set())))
        parts = [part for part in parts if part]
        for part in parts:
            whole = sum(part.values()) * len(parts) / SHARES.get(language, 1.0)
            for i, count in part.items():
                value[i] += count / whole
    keep(sorted(value, key=lambda i: (-value[i], i)))
    return sorted(kept)


def trim_tokenizer(source: Path, texts: dict[str, list[str]]) -> tuple[dict[str, Any], list[int]]:
    """The content of tokenizer.json with VOCAB pieces, and each one's id in XLM-R."""
    content = json.loads(source.read_text(encoding="utf-8"))
    rows = content["model"]["vocab"]
    chosen = choose_pieces(Tokenizer.from_file(str(source)), rows, texts)
    content["model"]["vocab"] = [*rows[: len(SPECIAL)], *(rows[i] for i in chosen), ["<mask>", 0.0]]
    for token in content["added_tokens"]:
        if token["content"] == "<mask>":
            token["id"] = VOCAB - 1
    return content, [*range(len(SPECIAL)), *chosen, len(rows) - 1]


def longer(source: Tokenizer, trimmed: Tokenizer, texts: list[str]) -> float:
    """How many tokens the trimmed tokenizer makes of texts, by those of the source."""
    ours, theirs = (
        sum(len(e.ids) for e in t.encode_batch_fast(texts, add_special_tokens=False))
        for t in (trimmed, source)
    )
    return ours / theirs


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


def read_texts(files: list[Path]) -> dict[str, list[str]]:
    texts: dict[str, list[str]] = defaultdict(list)
    for path in files:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                texts[row.get("lang", "en")].append(row["text"])
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description="Trim XLM-RoBERTa's vocabulary.")
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("texts", type=Path, nargs="+")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    texts = read_texts(args.texts)
    content, ids = trim_tokenizer(args.tokenizer, texts)
    compact = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    (args.out / "tokenizer.json").write_text(compact, encoding="utf-8")
    np.save(args.out / "pieces.npy", np.array(ids))
    for name, small in small_files().items():
        (args.out / name).write_text(json.dumps(small, indent=2) + "\n", encoding="utf-8")
    files = (args.tokenizer, args.out / "tokenizer.json")
    whole, ours = (Tokenizer.from_file(str(file)) for file in files)
    for language in sorted(texts):
        print(f"{language}: {longer(whole, ours, texts[language][::50]):.2f} of XLM-R's tokens")


if __name__ == "__main__":
    main()
