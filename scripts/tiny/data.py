"""The texts that m3fast-tiny is trained on, as files that `m3fast train` reads.

    python scripts/tiny/data.py SENTENCES.jsonl.gz PASSAGES.jsonl.gz HANDBOOK.json.gz TEXTS \\
        TOKENIZER OUT

SENTENCES: {"lang", "text"} a line, the sentence files of Mozilla Common Voice (CC0). PASSAGES:
{"lang", "source", "text"} a line, of which only DRCD (CC BY-SA 3.0) is used. HANDBOOK: {locale:
{section: text}}, the Debian Administrator's Handbook (CC BY-SA 3.0), whose paragraphs are parallel
in 14 locales. TEXTS: the folder of parallel.py. HELD sections of the handbook and a tenth of the
help's pages give the files to choose by (dev) and are in no file to train on. TOKENIZER:
XLM-RoBERTa's tokenizer.json (MIT), whose pieces make up word salads for languages with few texts.

Hardly anybody asked questions about these texts, so queries are made from them: a sentence, or part
of one with words left out, belongs to the passage it stands in (the inverse cloze task), a heading
to what stands below it, a word to its gloss, and each text, or a query of it, to its translations.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parallel import UNSPACED

SEED = 7
HELD = 32  # of 126 sections
ENDS = re.compile(r"(?<=[.!?؟])\s+|(?<=[。！？])")
# Pairs per language made of Common Voice; languages with few sentences repeat theirs, mixed anew.
SENTENCE_PAIRS = {"en": 4000, "ko": 1500, "ru": 1500, "th": 1000}
# Pairs, or texts, of each kind.
COUNTS = {
    **{"handbook": 30_000, "paragraphs": 35_000, "sections": 20_000, "strings": 35_000},
    **{"cloze of paragraphs": 25_000, "cloze of the handbook": 15_000, "glosses": 40_000},
    **{"texts of strings": 40_000, "texts of glosses": 20_000},
}
DEV = ("ar", "de", "en", "es", "fa", "fr", "id", "it", "nb", "pt", "ru", "zh")
DEV_HELP = ("de", "el", "en", "es", "fr", "it", "nl", "pl")
# Salads per language, and the scripts of its pieces as ranges of characters.
SALADS = {"ar": (2000, "؀-ۿ"), "el": (2000, "Ͱ-Ͽ"), "hi": (4000, "ऀ-ॿ"), "ko": (3000, "가-힣")}
SALADS |= {"ru": (4000, "Ѐ-ӿ"), "th": (5000, "฀-๿"), "zh": (1000, "一-鿿")}


@dataclass(frozen=True)
class Text:
    """A text in one of several languages: rows of one key are translations."""

    key: str
    language: str
    text: str
    title: str = ""


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


def read_handbook(path: Path) -> tuple[list[Text], list[Text]]:
    """Paragraphs to train on, and those of the held sections."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        handbook: dict[str, dict[str, str]] = json.load(file)
    names = sorted(n for n in handbook["en-US"] if n.startswith("sect."))
    held = set(random.Random(SEED).sample(names, HELD))
    train: list[Text] = []
    dev: list[Text] = []
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
                # The Japanese edition splits some paragraphs: its numbers do not match the others'.
                place = f"{name}:{index}" + (":ja" if language == "ja" else "")
                paragraph, key = Text(place, language, text), squeezed(text)
                if name in held:
                    dev.append(paragraph)
                # A chapter's page repeats its sections: its middle gives a paragraph away.
                elif key not in seen and key[max(0, len(key) // 2 - 15) :][:30] not in secret:
                    seen.add(key)
                    train.append(paragraph)
    return train, dev


def page(key: str) -> str:
    """The page of a key of parallel.py."""
    return key.partition("#")[0]


def read_texts(path: Path) -> list[Text]:
    with path.open(encoding="utf-8") as lines:
        rows = map(json.loads, lines)
        return [
            Text(f"{r['source']}:{r['key']}", r["lang"], r["text"], r.get("title", ""))
            for r in rows
        ]


def split(texts: list[Text], held: set[str]) -> tuple[list[Text], list[Text]]:
    """Texts of other pages, without those that a held page has too, and those of the held pages."""
    dev = [t for t in texts if page(t.key) in held]
    secret = {t.text for t in dev}
    return [t for t in texts if page(t.key) not in held and t.text not in secret], dev


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
        for _ in range(SENTENCE_PAIRS.get(language, 2000)):
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


def translations(groups: list[list[Text]], count: int, rng: random.Random) -> list[dict[str, Any]]:
    """Texts, or queries of them, with their counterparts in another language, often English."""
    rows: list[dict[str, Any]] = []
    while len(rows) < count:
        group = rng.choice(groups)
        english = [t for t in group if t.language == "en"]
        a = rng.choice(group)
        b = rng.choice(english if english and rng.random() < 0.5 else group)
        if a.language == b.language or not 0.2 < len(a.text) / len(b.text) < 5:
            continue
        asked = a.title
        if not asked and rng.random() < 0.6:
            asked = query_of(a.text, a.language, rng)
        row = pair(asked or a.text, b.text, "translation", "")
        del row["lang"]  # batches shall mix them
        row["languages"] = [a.language, b.language]
        rows.append(row)
    return rows


def grouped(texts: Iterable[Text], least: int = 3) -> list[list[Text]]:
    groups: dict[str, list[Text]] = defaultdict(list)
    for text in texts:
        groups[text.key].append(text)
    return [group for group in groups.values() if len(group) >= least]


def heading_pairs(sections: list[Text]) -> list[dict[str, Any]]:
    """A heading asks for what stands below it."""
    return [pair(s.title, s.text, "heading", s.language) for s in sections]


def gloss_pairs(glosses: list[dict[str, Any]], rng: random.Random) -> list[dict[str, Any]]:
    """A word asks for its meaning, or a part of the meaning for the word with it."""
    rows: list[dict[str, Any]] = []
    for gloss in glosses:
        words, text = gloss["words"], gloss["text"]
        if rng.random() < 0.5:
            rows.append(pair(rng.choice(words), text, "gloss", "en"))
        else:
            query = query_of(text, "en", rng)
            rows.append(pair(query, f"{', '.join(words)}: {text}", "gloss", "en"))
    return rows


def squad(path: Path, name: str, rows: list[tuple[str, str, str]]) -> None:
    """Rows of id, question and passage as SQuAD's JSON; questions are parallel by id."""
    paragraphs = [
        {"context": text, "qas": [{"id": key, "question": query, "answers": []}]}
        for key, query, text in rows
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {"data": [{"title": name, "paragraphs": paragraphs}]}
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")


def dev_sets(handbook: list[Text], sections: list[Text], rng: random.Random, out: Path) -> None:
    """Held texts to choose by: queries of the handbook's paragraphs, headings of help pages."""
    for name, held, languages in (("handbook", handbook, DEV), ("help", sections, DEV_HELP)):
        places = {
            k: v
            for k, v in by_key(held).items()
            if len(v.keys() & set(languages)) == len(languages)
        }
        for language in languages:
            texts = [(key, found[language]) for key, found in sorted(places.items())]
            rows = [(k, t.title or query_of(t.text, language, rng), t.text) for k, t in texts]
            squad(out / "dev" / name / f"{name}.{language}.json", name, rows)


def by_key(texts: Iterable[Text]) -> dict[str, dict[str, Text]]:
    found: dict[str, dict[str, Text]] = defaultdict(dict)
    for text in texts:
        found[text.key][text.language] = text
    return found


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
    for name in ("sentences", "passages", "handbook", "texts", "tokenizer", "out"):
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
    handbook, held_handbook = read_handbook(args.handbook)
    sections, paragraphs, strings = (
        read_texts(args.texts / f"{name}.jsonl") for name in ("sections", "paragraphs", "strings")
    )
    pages = sorted({page(t.key) for t in sections})
    held = set(random.Random(SEED).sample(pages, len(pages) // 10))
    sections, held_sections = split(sections, held)
    paragraphs, _ = split(paragraphs, held)
    with (args.texts / "glosses.jsonl").open(encoding="utf-8") as lines:
        glosses = [json.loads(line) for line in lines]

    few = rng.sample(paragraphs, COUNTS["cloze of paragraphs"])
    few += rng.sample(handbook, COUNTS["cloze of the handbook"])
    cloze = [(t.language, t.text) for t in sections + few]
    cloze += [("zh-TW", t) for t in drcd * 2]
    pairs = sentence_pairs(sentences, rng) + cloze_pairs(cloze, rng) + heading_pairs(sections) * 2
    pairs += gloss_pairs(rng.sample(glosses, COUNTS["glosses"]), rng)
    write_lines(args.out / "pairs.jsonl", pairs)
    parallel: list[dict[str, Any]] = []
    every = {"handbook": handbook, "paragraphs": paragraphs, "sections": sections}
    for name, given in (every | {"strings": strings}).items():
        parallel += translations(grouped(given), COUNTS[name], rng)
    write_lines(args.out / "translations.jsonl", parallel)
    texts = [
        {"text": t, "lang": language} for language in sentences for t in sentences[language][::2]
    ]
    texts += [
        {"text": t.text, "lang": t.language}
        for t in rng.sample(strings, COUNTS["texts of strings"])
    ]
    texts += [
        {"text": g["text"], "lang": "en"} for g in rng.sample(glosses, COUNTS["texts of glosses"])
    ]
    texts += [{"text": r["pos"][0], "lang": r["lang"]} for r in salads(args.tokenizer, rng)]
    write_lines(args.out / "sentences.jsonl", texts)
    dev_sets(held_handbook, held_sections, rng, args.out)
    for file in sorted(args.out.glob("*.json*")):
        print(f"{file.stat().st_size:>12,}  {file.name}")


if __name__ == "__main__":
    main()
