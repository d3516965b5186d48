"""Reads SQuAD's and XQuAD's JSON: each distinct paragraph a document, each question a query."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from m3fast.errors import InputError
from m3fast.evaluate.dataset import Dataset, Texts
from m3fast.evaluate.files import field, lines, parse

if TYPE_CHECKING:
    from pathlib import Path

# xquad.de.json, MLQA's test-context-de-question-de.json, translated.zh-TW.json.gz
LANGUAGE = re.compile(r"[.-]([a-z]{2,3}(?:[-_][A-Za-z]{2,4})?)\.json(?:\.gz)?$")


def language(file: Path) -> str:
    """The language in a file's name, else the name without its suffixes."""
    found = LANGUAGE.search(file.name)
    return found[1] if found else file.name.removesuffix(".gz").removesuffix(".json")


def load(file: Path) -> Dataset:
    """Read one file. Questions that SQuAD 2 marks as impossible have no answer: left out.

    Raises:
        InputError: naming the file and the place in it that is not as in SQuAD.
        OSError: the file cannot be read.
    """
    raw = parse(str(file), "\n".join(text for _, text in lines(file)))
    documents: dict[str, str] = {}  # text -> id
    queries: dict[str, str] = {}  # id -> text
    qrels: dict[str, dict[str, int]] = {}
    number = 0
    for a, article in enumerate(field(str(file), raw, "data", list)):
        where = f"{file}: data[{a}]"
        for p, paragraph in enumerate(field(where, article, "paragraphs", list)):
            place = f"{where}.paragraphs[{p}]"
            document = documents.setdefault(
                field(place, paragraph, "context", str), f"p{number}"
            )
            number += 1
            for q, qa in enumerate(field(place, paragraph, "qas", list)):
                at = f"{place}.qas[{q}]"
                query = field(at, qa, "id", str)
                text = field(at, qa, "question", str)
                if qa.get("is_impossible") is True:
                    continue
                if queries.setdefault(query, text) != text:
                    raise InputError(f"{at}: expected one question per id, found {query!r} again")
                qrels.setdefault(query, {})[document] = 1
    if not qrels:
        raise InputError(f"{file}: expected questions with answers, found none")
    return Dataset(
        language(file),
        Texts(tuple(queries), tuple(queries.values())),
        Texts(tuple(documents.values()), tuple(documents)),
        qrels,
    )
