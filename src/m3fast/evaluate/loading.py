"""Loads datasets: recognises the format of a path and reads it; a small set is built in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from m3fast.errors import InputError
from m3fast.evaluate import beir_trec, squad
from m3fast.evaluate.dataset import Dataset, Texts

if TYPE_CHECKING:
    from collections.abc import Sequence

FORMATS = ("auto", "beir", "trec", "squad")
BUILTIN = Path(__file__).parents[1] / "data" / "eval.json"


def load_dataset(
    path: str | Path, format: str = "auto", *, split: str | None = None
) -> list[Dataset]:
    """The datasets of a folder or file.

    Args:
        path: a folder in BEIR's or TREC's format (see `m3fast.evaluate.beir_trec`), which is one
            dataset named like the folder; a .json file in SQuAD's format, or a folder of such
            files, each of which is one, named by the language in its name (`xquad.de.json`).
        format: `beir`, `trec`, `squad`, or `auto` to see which it is.
        split: BEIR: which file of qrels/, None for `test` or the only one; TREC: what is in the
            names of topics and qrels if there are several.

    Raises:
        InputError: naming file and line: no such format, or a broken file.
        OSError: a file cannot be read.
    """
    root = Path(path)
    if format not in FORMATS:
        raise InputError(f"format: expected one of {', '.join(FORMATS)}, found {format!r}")
    if not root.exists():
        raise InputError(f"{root}: expected a folder or a file, found nothing there")
    kind = _recognised(root) if format == "auto" else format
    if kind == "squad":
        if not _json_files(root):
            raise InputError(f"{root}: expected .json files, found none")
        return [squad.load(file) for file in _json_files(root)]
    if not root.is_dir():
        raise InputError(f"{root}: expected a folder for format {kind}, found a file")
    load = beir_trec.load_beir if kind == "beir" else beir_trec.load_trec
    return [load(root, split)]


def builtin() -> list[Dataset]:
    """A small parallel set of short passages, one dataset per language; for a first look only."""
    rows = json.loads(BUILTIN.read_text(encoding="utf-8"))["texts"]
    ids = tuple(rows)
    qrels = {i: {i: 1} for i in ids}
    return [
        Dataset(
            language,
            Texts(ids, tuple(rows[i][language][0] for i in ids)),
            Texts(ids, tuple(rows[i][language][1] for i in ids)),
            qrels,
        )
        for language in next(iter(rows.values()))
    ]


def pick(datasets: Sequence[Dataset], names: Sequence[str]) -> list[Dataset]:
    """The datasets of these names, in the order asked for.

    Raises:
        InputError: a name that none of them has.
    """
    by_name = {dataset.name: dataset for dataset in datasets}
    if unknown := [name for name in names if name not in by_name]:
        raise InputError(f"languages: expected some of {', '.join(by_name)}, found {unknown[0]!r}")
    return [by_name[name] for name in dict.fromkeys(names)]


def _recognised(root: Path) -> str:
    if root.is_file():
        if root.name.removesuffix(".gz").endswith(".json"):
            return "squad"
    elif beir_trec.is_beir(root):
        return "beir"
    elif beir_trec.is_trec(root):
        return "trec"
    elif _json_files(root):
        return "squad"
    raise InputError(
        f"{root}: expected a folder in BEIR's format (corpus.jsonl, queries.jsonl, qrels/), one in "
        "TREC's (corpus*, topics*, qrels*), or .json in SQuAD's, found none of them"
    )


def _json_files(root: Path) -> list[Path]:
    if root.is_file():
        return [root]
    return sorted(root.glob("*.json")) + sorted(root.glob("*.json.gz"))
