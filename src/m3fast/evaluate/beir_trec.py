"""Reads folders in BEIR's and TREC's formats: texts in .jsonl or .tsv, and a file of judgements.

    BEIR  corpus.jsonl  queries.jsonl  qrels/<split>.tsv (header; query, document, score)
    TREC  corpus* or collection* or docs*  topics* or queries*  qrels* (query, any, document, score)

.jsonl holds `_id`, `id` or `docid`, `text` or `contents`, perhaps `title`; .tsv holds id and text.
Every file may be .gz. BEIR: arXiv 2104.08663.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from m3fast.errors import InputError
from m3fast.evaluate.dataset import Dataset, Texts
from m3fast.evaluate.files import field, lines, parse, unicode_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    Qrels = dict[str, dict[str, int]]

IDS, TEXTS = ("_id", "id", "docid"), ("text", "contents")
DOCUMENTS, QUERIES, JUDGEMENTS = ("corpus", "collection", "docs"), ("topics", "queries"), ("qrels",)
KINDS = (".jsonl", ".tsv", ".txt")


def is_beir(root: Path) -> bool:
    """Whether a folder looks like BEIR's."""
    return (root / "qrels").is_dir()


def is_trec(root: Path) -> bool:
    """Whether a folder looks like TREC's."""
    return any(each.is_file() for each in root.glob("qrels*"))


def load_beir(root: Path, split: str | None) -> Dataset:
    """Read a folder.

    Args:
        split: name of the file in qrels/, without .tsv; None for `test`, or the only one.

    Raises:
        InputError: naming file and line: a file is missing, or is not as above.
        OSError: a file cannot be read.
    """
    found = {_stem(each): each for each in sorted((root / "qrels").glob("*.tsv*"))}
    chosen = split or (next(iter(found)) if len(found) == 1 else "test")
    if chosen not in found:
        raise InputError(
            f"{root / 'qrels'}: expected {chosen}.tsv, found {', '.join(found) or 'no .tsv'}"
        )
    corpus, queries = (_beir_file(root, name) for name in ("corpus", "queries"))
    return _joined(root.resolve().name, [corpus], queries, found[chosen], header=True)


def load_trec(root: Path, split: str | None) -> Dataset:
    """Read a folder. Where there are several topics or qrels, `split` must be in the name.

    Raises:
        InputError: naming file and line: a file is missing, or is not as above.
        OSError: a file cannot be read.
    """
    queries = _one(root, QUERIES, split, KINDS)
    qrels = _one(root, JUDGEMENTS, split, ())
    corpus = _named(root, DOCUMENTS, KINDS)
    if not corpus:
        raise InputError(f"{root}: expected {_wanted(DOCUMENTS, KINDS)}, found none")
    return _joined(root.resolve().name, corpus, queries, qrels, header=False)


def _joined(
    name: str, corpus: Sequence[Path], queries: Path, qrels: Path, *, header: bool
) -> Dataset:
    judged = _qrels(qrels, header)
    texts = _texts([queries])
    kept = [i for i in texts if i in judged]
    if not kept:
        raise InputError(f"{qrels}: expected ids of queries in {queries}, found none of them")
    documents = _texts(corpus)
    ids = {document for query in kept for document in judged[query]}
    lost = len(ids - documents.keys())
    if lost == len(ids):
        raise InputError(f"{qrels}: expected ids of documents in {corpus[0]}, found none of them")
    for n, of, what, where in (
        (len(judged) - len(kept), len(judged), "queries", f"{queries}: left out"),
        (lost, len(ids), "documents", f"{corpus[0]}: they count as not found"),
    ):
        if n:
            text = f"{qrels}: {n:,} of {of:,} {what} are not in {where}"
            warnings.warn(text, RuntimeWarning, stacklevel=4)
    return Dataset(
        name,
        Texts(tuple(kept), tuple(texts[i] for i in kept)),
        Texts(tuple(documents), tuple(documents.values())),
        {i: judged[i] for i in kept},
    )


def _texts(files: Sequence[Path]) -> dict[str, str]:
    found: dict[str, str] = {}
    for file in files:
        for where, key, text in _rows(file):
            if key in found:
                raise InputError(f"{where}: expected each id once, found {key!r} again")
            found[key] = text
    return found


def _rows(file: Path) -> Iterator[tuple[str, str, str]]:
    """(`path:line`, id, text)."""
    tabs = ".jsonl" not in file.suffixes
    for where, line in lines(file):
        if tabs:
            cells = line.split("\t")
            if len(cells) != 2:
                raise InputError(
                    f"{where}: expected id and text with a tab between, found {len(cells)} columns"
                )
            yield where, cells[0], cells[1]
            continue
        row = parse(where, line)
        if not isinstance(row, dict):
            raise InputError(f"{where}: expected a JSON object, found {type(row).__name__}")
        key = row.get(next((name for name in IDS if name in row), "_id"))
        if not isinstance(key, str | int) or isinstance(key, bool):
            raise InputError(
                f"{where}: expected {' or '.join(IDS)}, a str or int, found keys {list(row)}"
            )
        text = field(where, row, next((name for name in TEXTS if name in row), "text"), str)
        title = row.get("title")
        if title:
            text = f"{field(where, row, 'title', str)} {text}"
        yield where, unicode_text(where, str(key)), text.strip()


def _qrels(file: Path, header: bool) -> Qrels:
    width = 3 if header else 4
    names = "query-id, corpus-id, score" if header else "query, iteration, document, relevance"
    found: Qrels = {}
    for where, line in lines(file):
        cells = line.split("\t") if header else line.split()
        if len(cells) != width:
            raise InputError(f"{where}: expected {width} columns ({names}), found {len(cells)}")
        query, document, score = cells[0], cells[-2], cells[-1]
        try:
            relevance = int(score)
        except ValueError:
            if header and not found and where.endswith(":1"):
                continue
            raise InputError(f"{where}: expected an integer at the end, found {score!r}") from None
        if header and where.endswith(":1"):
            raise InputError(f"{where}: expected a header ({names}), found {line!r}")
        # trec_eval takes what is below 0 (TREC's junk pages) as not relevant; its port does not.
        found.setdefault(query, {})[document] = max(0, relevance)
    if not found:
        raise InputError(f"{file}: expected judgements, found none")
    return found


def _beir_file(root: Path, name: str) -> Path:
    for file in (root / f"{name}.jsonl", root / f"{name}.jsonl.gz"):
        if file.is_file():
            return file
    raise InputError(f"{root}: expected {name}.jsonl beside qrels, found none")


def _one(root: Path, starts: Sequence[str], split: str | None, kinds: Sequence[str]) -> Path:
    found = _named(root, starts, kinds)
    if split is not None and len(found) > 1:
        found = [file for file in found if split in file.name] or found
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        hint = "; --split picks the one with that in its name" if found else ""
        raise InputError(f"{root}: expected one {_wanted(starts, kinds)}, found {names}{hint}")
    return found[0]


def _named(root: Path, starts: Sequence[str], kinds: Sequence[str]) -> list[Path]:
    files = sorted(file for start in starts for file in root.glob(f"{start}*") if file.is_file())
    return [f for f in files if not kinds or f.name.removesuffix(".gz").endswith(tuple(kinds))]


def _wanted(starts: Sequence[str], kinds: Sequence[str]) -> str:
    names = " or ".join(f"{start}*" for start in starts)
    return f"{names} ({', '.join(kinds)})" if kinds else names


def _stem(file: Path) -> str:
    return file.name.removesuffix(".gz").removesuffix(".tsv")
