"""Parallel texts in many languages, which packages carry under free licences.

    python scripts/tiny/parallel.py SOURCES OUT

SOURCES holds what `fetch.sh` brings, as it comes: Debian packages unpacked below `debian/`, and
wheels. Written to OUT, a JSON object a line:

    sections.jsonl   {"source", "key", "lang", "title", "text"}: a heading and what stands below it
    paragraphs.jsonl {"source", "key", "lang", "text"}
    strings.jsonl    the same: sentences and names of programs and of places
    glosses.jsonl    {"words", "text"}: English words and what they mean

Sources: LibreOffice's help and its messages (MPL-2.0), GNOME's help (CC BY-SA 3.0), names of
Unicode's CLDR as Babel has them (Unicode-3.0), WordNet 3.0 (a permissive licence of its own). Rows
of one source and key are translations of each other; what stayed in English is left out.
"""

from __future__ import annotations

import argparse
import gettext
import html
import json
import pickle
import re
import xml.etree.ElementTree as ET
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

# Language: folder of LibreOffice's help, of its messages, of GNOME's help, CLDR's locale.
LANGUAGES = {
    "en": ("en-US", "", "C", "en"),
    "ar": ("", "ar", "", "ar"),
    "de": ("de", "de", "de", "de"),
    "el": ("el", "el", "el", "el"),
    "es": ("es", "es", "es", "es"),
    "fa": ("", "fa", "fa", "fa"),
    "fr": ("fr", "fr", "fr", "fr"),
    "hi": ("hi", "hi", "hi", "hi"),
    "id": ("id", "id", "id", "id"),
    "it": ("it", "it", "it", "it"),
    "ja": ("ja", "ja", "ja", "ja"),
    "ko": ("ko", "ko", "ko", "ko"),
    "nl": ("nl", "nl", "nl", "nl"),
    "pl": ("pl", "pl", "pl", "pl"),
    "pt": ("pt-BR", "pt_BR", "pt_BR", "pt"),
    "ro": ("", "ro", "ro", "ro"),
    "ru": ("ru", "ru", "ru", "ru"),
    "th": ("", "th", "", "th"),
    "tr": ("tr", "tr", "tr", "tr"),
    "vi": ("vi", "vi", "vi", "vi"),
    "zh": ("zh-CN", "zh_CN", "zh_CN", "zh"),
    "zh-TW": ("zh-TW", "zh_TW", "", "zh_Hant"),
}
UNSPACED = {"ja", "th", "zh", "zh-TW"}
BLOCK = re.compile(r'<(p|h[1-6]) id="(par_\w+)"[^>]*>(.*?)</\1>', re.S)
TAG = re.compile(r"<[^>]+>")
SPACE = re.compile(r"\s+")
MALLARD = "{http://projectmallard.org/1.0/}"
MOST = 1500  # characters of a section's text

Row = dict[str, str]


def plain(markup: str) -> str:
    return SPACE.sub(" ", html.unescape(TAG.sub("", markup))).strip()


def localised(text: str, english: str | None, language: str) -> bool:
    """Whether a text is in its own language: what nobody translated stands in English."""
    if language == "en" or english is None:
        return True
    if language in {"ar", "el", "fa", "hi", "ja", "ko", "ru", "th", "zh", "zh-TW"}:
        letters = [c for c in text if c.isalpha()]
        return sum(c > "\u036f" for c in letters) > 0.4 * len(letters)
    words, theirs = set(text.lower().split()), set(english.lower().split())
    return len(words & theirs) < 0.5 * len(words)


@cache
def office_blocks(root: Path) -> list[tuple[str, str, str, str]]:
    """Language, place, kind ("p" or a heading's) and text of all blocks of LibreOffice's help."""
    blocks: list[tuple[str, str, str, str]] = []
    for language, (folder, *_) in LANGUAGES.items():
        if not folder:
            continue
        top = root / "usr/share/libreoffice/help" / folder / "text"
        for file in sorted(top.rglob("*.html")):
            page = file.read_text(encoding="utf-8").partition('id="SearchFrame"')[0]
            for kind, place, inner in BLOCK.findall(page):
                # One of several texts, each for another system, shows there.
                if "switchinline" not in inner and (text := plain(inner)):
                    key = f"{file.relative_to(top).with_suffix('')}#{place}"
                    blocks.append((language, key, kind, text))
    return blocks


def office_help(root: Path) -> Iterator[Row]:
    """A section per heading of LibreOffice's help pages, with the paragraphs below it."""
    section: Row = {"text": ""}
    before = ""
    for language, key, kind, text in office_blocks(root):
        page = f"{language} {key.partition('#')[0]}"
        if kind != "p" or page != before:
            if section["text"]:
                yield section
            section = {"source": "libreoffice", "key": key, "lang": language}
            section |= {"title": "" if kind == "p" else text, "text": ""}
        before = page
        if kind == "p" and len(section["text"]) + len(text) < MOST:
            section["text"] = f"{section['text']} {text}".strip()
    yield section


def paragraphs(root: Path) -> Iterator[Row]:
    """Paragraphs of LibreOffice's help, each text once per language."""
    english: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    for language, key, kind, text in office_blocks(root):
        if kind == "p" and (language, text) not in seen:
            seen.add((language, text))
            if language == "en":
                english[key] = text
            least = 25 if language in UNSPACED else 60
            if len(text) >= least and localised(text, english.get(key), language):
                yield {"source": "libreoffice", "key": key, "lang": language, "text": text}


def gnome_help(root: Path) -> Iterator[Row]:
    """A section per title of GNOME's help pages, keyed by its number in the page."""
    for language, (_, _, folder, _) in LANGUAGES.items():
        if not folder:
            continue
        for file in sorted((root / "usr/share/help" / folder / "gnome-help").glob("*.page")):
            section: Row | None = None
            number = 0
            for element in ET.parse(file).getroot().iter():
                if element.tag not in (f"{MALLARD}title", f"{MALLARD}p"):
                    continue
                text = SPACE.sub(" ", "".join(element.itertext())).strip()
                if element.tag == f"{MALLARD}title" and element.get("type") is None:
                    if section:
                        yield section
                    number += 1
                    section = {"source": "gnome", "key": f"{file.stem}#{number}"}
                    section |= {"lang": language, "title": text, "text": ""}
                elif section is not None and text and len(section["text"]) + len(text) < MOST:
                    section["text"] = f"{section['text']} {text}".strip()
            if section:
                yield section


def sections(root: Path) -> Iterator[Row]:
    """Sections of both, without those in English that should be in another language."""
    rows = [*office_help(root), *gnome_help(root)]
    english = {(r["source"], r["key"]): r["text"] for r in rows if r["lang"] == "en"}
    seen: set[tuple[str, str]] = set()
    for row in rows:
        least = 40 if row["lang"] in UNSPACED else 80
        if len(row["text"]) < least or not 3 <= len(row["title"]) <= 150:
            continue
        same = (row["lang"], row["text"])
        if same not in seen and localised(
            row["text"], english.get((row["source"], row["key"])), row["lang"]
        ):
            seen.add(same)
            yield row


def messages(root: Path) -> Iterator[Row]:
    """Sentences and labels of LibreOffice's own messages."""
    folder = root / "usr/lib/libreoffice/program/resource"
    english: dict[str, str] = {}
    for language, (_, name, *_) in LANGUAGES.items():
        files = sorted((folder / name / "LC_MESSAGES").glob("*.mo")) if name else []
        for file in files:
            with file.open("rb") as opened:
                catalog: dict[Any, str] = gettext.GNUTranslations(opened)._catalog
            for key, found in catalog.items():
                source = re.sub("[~_]", "", str(key).partition("\x04")[2]).strip()
                text = SPACE.sub(" ", re.sub("[~_]", "", found)).strip()
                least = 8 if language in UNSPACED else 18
                if len(source) < 18 or len(text) < least or set("%<{$\\|") & set(source + text):
                    continue
                if localised(text, source, language):
                    english[source] = source
                    yield {"source": "messages", "key": source, "lang": language, "text": text}
    for key in english:
        yield {"source": "messages", "key": key, "lang": "en", "text": key}


def names(wheel: Path) -> Iterator[Row]:
    """Countries and languages by name, of CLDR's locales in Babel's wheel."""

    class Data(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            return type(name, (), {"__setstate__": lambda self, state: None})

    with zipfile.ZipFile(wheel) as archive:
        for language, (*_, locale) in LANGUAGES.items():
            with archive.open(f"babel/locale-data/{locale}.dat") as file:
                data = Data(file).load()
            for kind in ("territories", "languages"):
                for key, text in data[kind].items():
                    if isinstance(text, str) and not re.fullmatch(r"[A-Z]{2}|\d+", text):
                        row = {"source": kind, "key": key, "lang": language, "text": text}
                        yield row


def glosses(root: Path) -> Iterator[dict[str, Any]]:
    """WordNet's sets of words with their gloss."""
    for kind in ("noun", "verb", "adj", "adv"):
        for line in (root / f"usr/share/wordnet/data.{kind}").read_text("utf-8").splitlines():
            if line.startswith(" "):
                continue
            fields, _, gloss = line.partition(" | ")
            parts = fields.split()
            words = [parts[4 + 2 * i].replace("_", " ") for i in range(int(parts[3], 16))]
            words = [re.sub(r"\((a|p|ip)\)$", "", word) for word in words]
            yield {"words": words, "text": gloss.strip()}


def write(path: Path, rows: Iterator[Any]) -> None:
    counts: dict[str, int] = defaultdict(int)
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            counts[row.get("lang", "en")] += 1
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(f"{path.name}: {dict(sorted(counts.items()))}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Parallel texts out of packages.")
    parser.add_argument("sources", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    debian = args.sources / "debian"
    [babel] = args.sources.glob("babel-*.whl")
    write(args.out / "sections.jsonl", sections(debian))
    write(args.out / "paragraphs.jsonl", paragraphs(debian))

    def strings() -> Iterator[Row]:
        yield from messages(debian)
        yield from names(babel)

    write(args.out / "strings.jsonl", strings())
    write(args.out / "glosses.jsonl", glosses(debian))


if __name__ == "__main__":
    main()
