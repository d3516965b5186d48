"""The texts that m3fast-tiny is trained on, as files that `m3fast train` reads.

    python scripts/tiny/data.py SENTENCES.jsonl.gz PASSAGES.jsonl.gz SECTIONS.json.gz TOKENIZER OUT

SENTENCES: {"lang", "text"} a line, the sentence files of Mozilla Common Voice (CC0). PASSAGES:
{"lang", "source", "text"} a line, of which only DRCD (CC BY-SA 3.0) is used. SECTIONS: {locale:
{section: text}}, the Debian Administrator's Handbook (CC BY-SA 3.0), whose paragraphs are parallel
in 14 locales. HELD sections give the files to choose by (dev) and are in no file to train on.
TOKENIZER: XLM-RoBERTa's tokenizer.json (MIT), whose pieces make up word salads for the languages
with few texts.

Nobody asked questions about these texts, so queries are made from them: a sentence, or part of
one with words left out, belongs to the passage it stands in (the inverse cloze task), and a
paragraph belongs to its translations.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEED = 7
HELD = 32  # of 126 sections
UNSPACED = {"ja", "th", "zh", "zh-TW"}
ENDS = re.compile(r"(?<=[.!?؟])\s+|(?<=[。！？])")
# Pairs per language made of Common Voice; languages with few sentences repeat theirs, mixed anew.
SENTENCE_PAIRS = {"ko": 2000, "ru": 2000, "th": 1000}
TRANSLATIONS = 40_000
DEV = ("ar", "de", "en", "es", "fa", "fr", "id", "it", "nb", "pt", "ru", "zh")
# Salads per language, and the scripts of its pieces as ranges of characters.
SALADS = {"ar": (2000, "؀-ۿ"), "ja": (1500, "぀-ヿ一-鿿"), "ko": (2500, "가-힣")}
SALADS |= {"ru": (5000, "Ѐ-ӿ"), "th": (5000, "฀-๿"), "zh": (1500, "一-鿿")}


@dataclass(frozen=True)
class Paragraph:
    locale: str
    section: str
    index: int
    text: str

    @property
    def language(self) -> str:
        return self.locale[:2]


def squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


def translated(text: str, english: str, language: str) -> bool:
    """Whether a paragraph is in its own language: untranslated ones stand in English."""
    if language == "en":
        return True
    if script := {"ru": "Ѐ-ӿ", "ar": "؀-ۿ", "fa": "؀-ۿ", "zh": "一-鿿", "ja": "぀-ヿ一-鿿"}.get(
        language
    ):
        foreign = len(re.findall("[A-Za-z]", text))
        return len(re.findall(f"[{script}]", text)) > (0.3 if language in UNSPACED else 1) * foreign
    words, theirs = set(text.lower().split()), set(english.lower().split())
    return len(words & theirs) < 0.4 * len(words)


def read_sections(path: Path) -> tuple[list[Paragraph], list[Paragraph]]:
    """Paragraphs to train on, and those of the held sections."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        handbook: dict[str, dict[str, str]] = json.load(file)
    names = sorted(n for n in handbook["en-US"] if n.startswith("sect."))
    held = set(random.Random(SEED).sample(names, HELD))
    train: list[Paragraph] = []
    dev: list[Paragraph] = []
    for locale, sections in handbook.items():
        secret = "|".join(squeezed(sections[n]) for n in sorted(held))
        seen: set[str] = set()
        language = locale[:2]
        for name, content in sorted(sections.items()):
            english = handbook["en-US"][name].split("\n")
            for index, raw in enumerate(content.split("\n")):
                text = re.sub(r"\s+", " ", raw).strip()
                if len(text) < (25 if language in UNSPACED else 60):
                    continue
                if not translated(text, english[min(index, len(english) - 1)], language):
                    continue
                paragraph, key = Paragraph(locale, name, index, text), squeezed(text)
                if name in held:
                    dev.append(paragraph)
                # A chapter's page repeats its sections: its middle gives a paragraph away.
                elif key not in seen and key[max(0, len(key) // 2 - 15) :][:30] not in secret:
                    seen.add(key)
                    train.append(paragraph)
    return train, dev


def query_of(text: str, language: str, rng: random.Random) -> str:
    """A sentence of `text`, or a stretch of it, some of its words left out."""
    sentences = [s for s in ENDS.split(text) if len(s) >= (6 if language in UNSPACED else 20)]
    chosen = rng.choice(sentences) if sentences else text
    if language in UNSPACED:
        size = rng.randint(5, 28)
        start = rng.randint(0, max(0, len(chosen) - size))
        return chosen[start : start + size]
    words = chosen.split()
    size = rng.randint(4, 16)
    start = rng.randint(0, max(0, len(words) - size))
    kept = [w for w in words[start : start + size] if rng.random() > 0.25]
    return " ".join(kept or words[:size])


def pair(query: str, passage: str, kind: str, language: str) -> dict[str, Any]:
    return {"query": query, "pos": [passage], "kind": kind, "lang": language}


def sentence_pairs(sentences: dict[str, list[str]], rng: random.Random) -> list[dict[str, Any]]:
    """Passages of some hundred characters put together from sentences of one language."""
    rows: list[dict[str, Any]] = []
    for language, texts in sorted(sentences.items()):
        unspaced = language in UNSPACED
        for _ in range(SENTENCE_PAIRS.get(language, 4500)):
            size = int(rng.triangular(40, 260, 120) if unspaced else rng.triangular(80, 800, 300))
            parts: list[str] = []
            while sum(map(len, parts)) < size:
                parts.append(rng.choice(texts))
            query = query_of(rng.choice(parts), language, rng)
            rows.append(pair(query, ("" if unspaced else " ").join(parts), "mixed", language))
    return rows


def cloze_pairs(passages: list[tuple[str, str]], rng: random.Random) -> list[dict[str, Any]]:
    """From (language, passage): a query of each, which half the passages then lack."""
    rows: list[dict[str, Any]] = []
    for language, text in passages:
        query = query_of(text, language, rng)
        rest = text.replace(query, " ")
        cut = rng.random() < 0.5 and len(rest) > len(text) // 2
        rows.append(pair(query, rest if cut else text, "cloze", language))
    return rows


def translations(paragraphs: list[Paragraph], rng: random.Random) -> list[dict[str, Any]]:
    """A paragraph, or a query of it, with its counterpart in another language."""
    groups: dict[tuple[str, int], list[Paragraph]] = defaultdict(list)
    # The Japanese edition splits some paragraphs: its numbers do not match the others'.
    for p in paragraphs:
        if p.locale != "ja-JP":
            groups[p.section, p.index].append(p)
    rows: list[dict[str, Any]] = []
    usable = [g for g in groups.values() if len(g) > 3]
    while len(rows) < TRANSLATIONS:
        group = rng.choice(usable)
        english = [p for p in group if p.locale == "en-US"]
        a = rng.choice(group)
        b = rng.choice(english if english and rng.random() < 0.5 else group)
        if a.locale == b.locale or not 0.3 < len(a.text) / len(b.text) < 3.5:
            continue
        row = pair(a.text, b.text, "translation", f"{a.language}-{b.language}")
        row["languages"] = row.pop("lang")  # batches shall mix them
        rows.append(row)
    return rows


def dev_set(held: list[Paragraph], rng: random.Random, out: Path) -> None:
    """Held paragraphs as SQuAD's JSON, one file per language, questions parallel by id."""
    by_place: dict[tuple[str, int], dict[str, str]] = defaultdict(dict)
    for p in held:
        if p.language in DEV:
            by_place[p.section, p.index][p.language] = p.text
    whole = {k: v for k, v in sorted(by_place.items()) if len(v) == len(DEV)}
    for language in DEV:
        paragraphs = []
        for (section, index), places in whole.items():
            query = query_of(places[language], language, rng)
            qa = {"id": f"{section}:{index}", "question": query, "answers": []}
            paragraphs.append({"context": places[language], "qas": [qa]})
        data = {"data": [{"title": "handbook", "paragraphs": paragraphs}]}
        file = out / "dev" / f"handbook.{language}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")


def salads(tokenizer: Path, rng: random.Random) -> list[dict[str, Any]]:
    """Passages of random words of a script, the frequent ones more often, and queries of some."""
    vocab = json.loads(tokenizer.read_text(encoding="utf-8"))["model"]["vocab"]
    rows: list[dict[str, Any]] = []
    for language, (count, script) in SALADS.items():
        spaced, least = language not in UNSPACED, 1 if language in ("ja", "zh", "ko") else 3
        shape = re.compile(f"{'▁' if spaced else '▁?'}([{script}]{{{least},}})")
        words = [m[1] for piece, _ in vocab if (m := shape.fullmatch(piece))][:6000]
        weights = [(20 + rank) ** -0.6 for rank in range(len(words))]
        for _ in range(count):
            chosen = rng.choices(words, weights, k=rng.randint(15, 70))
            few = rng.sample(chosen, rng.randint(3, 9))
            join = (" " if spaced else "").join
            rows.append(pair(join(few), join(chosen), "salad", language))
    return rows


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Texts that m3fast-tiny is trained on.")
    for name in ("sentences", "passages", "sections", "tokenizer", "out"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args()
    rng = random.Random(SEED)
    args.out.mkdir(parents=True, exist_ok=True)
    sentences: dict[str, list[str]] = defaultdict(list)
    with gzip.open(args.sentences, "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            sentences[row["lang"]].append(row["text"])
    with gzip.open(args.passages, "rt", encoding="utf-8") as lines:
        drcd = [r["text"] for r in map(json.loads, lines) if r["source"] == "drcd"]
    paragraphs, held = read_sections(args.sections)
    cloze = [(p.language, p.text) for p in paragraphs] + [("zh-TW", t) for t in drcd * 3]
    pairs = sentence_pairs(sentences, rng) + cloze_pairs(cloze, rng)
    pairs += salads(args.tokenizer, rng)
    write_lines(args.out / "pairs.jsonl", pairs)
    write_lines(args.out / "translations.jsonl", translations(paragraphs, rng))
    texts = [{"text": t, "lang": language} for language in sentences for t in sentences[language]]
    write_lines(args.out / "sentences.jsonl", texts)
    dev_set(held, rng, args.out)
    for file in sorted(args.out.glob("*.json*")):
        print(f"{file.stat().st_size:>12,}  {file.name}")


if __name__ == "__main__":
    main()
