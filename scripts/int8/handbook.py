"""The Debian Administrator's Handbook as a retrieval task in BEIR's form, a folder per language.

    python scripts/int8/handbook.py SECTIONS.json.gz OUT [LANGUAGE ...]

SECTIONS: {locale: {section: text}} (CC BY-SA 3.0). A numbered heading is a query, the text under it
its document. Headings that stand in a language more than once are left out, with their texts.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
from collections import Counter
from pathlib import Path

HEADING = re.compile(r"^ ?\d+(?:\.\d+)+\. +(\S.*)$", re.M)
LEAST = 200  # characters of a document
LANGUAGES = ["en", "de", "zh", "ar"]


def pieces(sections: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Id -> heading and the text under it."""
    found: dict[str, tuple[str, str]] = {}
    for name, text in sorted(sections.items()):
        if not name.startswith("sect."):  # a chapter's page repeats its sections
            continue
        _, *parts = HEADING.split(text)
        for i in range(0, len(parts), 2):
            if len(body := parts[i + 1].strip()) >= LEAST:
                found[f"{name.removesuffix('.html')}:{i // 2}"] = (parts[i].strip(), body)
    times = Counter(heading for heading, _ in found.values())
    return {key: piece for key, piece in found.items() if times[piece[0]] == 1}


def write(found: dict[str, tuple[str, str]], folder: Path) -> None:
    """A BEIR folder: corpus.jsonl, queries.jsonl, qrels/test.tsv."""
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    for name, which in (("queries", 0), ("corpus", 1)):
        lines = [
            json.dumps({"_id": key, "text": piece[which]}, ensure_ascii=False)
            for key, piece in found.items()
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = ["query-id\tcorpus-id\tscore", *(f"{key}\t{key}\t1" for key in found)]
    (folder / "qrels/test.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="The Debian handbook as a retrieval task.")
    parser.add_argument("sections", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("languages", nargs="*", default=LANGUAGES)
    args = parser.parse_args()
    with gzip.open(args.sections, "rt", encoding="utf-8") as file:
        handbook: dict[str, dict[str, str]] = json.load(file)
    locales = {locale.partition("-")[0]: locale for locale in handbook}
    for language in args.languages:
        if language not in locales:
            parser.error(f"languages: expected some of {', '.join(locales)}, found {language!r}")
        found = pieces(handbook[locales[language]])
        write(found, args.out / language)
        print(f"{args.out / language}: {len(found)} headings and texts")


if __name__ == "__main__":
    main()
