"""`m3fast score`: scores of pairs of query and passage, as compute_score gives them."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import m3fast
from m3fast.cli.corpus import check_text, json_object, text_lines
from m3fast.cli.table import table
from m3fast.cli.weights import parse_weights
from m3fast.errors import InputError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from m3fast import Engine

    Pair = tuple[str, str]

CHUNK = 256  # pairs encoded at a time


def run(args: argparse.Namespace) -> int:
    """Print the scores of all pairs.

    Raises:
        M3FastError: bad input, arguments or model.
        OSError: a file cannot be read.
    """
    weights = parse_weights(args.weights)
    pairs = iter(_given(args) if args.pairs is None else _read(args.pairs, args))
    first = next(pairs, None)  # a missing or malformed file is known before the model is loaded
    engine = m3fast.Engine.from_pretrained(
        args.model, device=args.device, dtype=args.dtype, max_length=args.max_length
    )
    chunk = [] if first is None else [first, *islice(pairs, CHUNK - 1)]
    header: list[str] = []
    rows: list[list[str]] = []
    while chunk:
        scores = _scores(engine, chunk, weights)
        header = [*scores, "query", "passage"]
        for i, (query, passage) in enumerate(chunk):
            values = {name: found[i] for name, found in scores.items()}
            if args.json:
                line = {"query": query, "passage": passage, **values}
                print(json.dumps(line, ensure_ascii=False))
            else:
                rows.append([*(f"{value:.4f}" for value in values.values()), query, passage])
        chunk = list(islice(pairs, CHUNK))
    if rows:
        print(table(header, rows, texts=2))
    return 0


def _given(args: argparse.Namespace) -> list[Pair]:
    queries, passages = args.query, args.passage
    if not queries or not passages:
        raise InputError("--query, --passage: expected one of each at least, or --pairs")
    if len(queries) == 1:
        queries = queries * len(passages)
    if len(queries) != len(passages):
        raise InputError(
            f"--query, --passage: expected one query or as many as passages, found {len(queries)} "
            f"and {len(passages)}"
        )
    texts = [check_text("--query, --passage", text) for text in (*queries, *passages)]
    return list(zip(texts[: len(queries)], texts[len(queries) :], strict=True))


def _read(path: str, args: argparse.Namespace) -> Iterator[Pair]:
    kind = Path(path).suffix.lower()
    if args.query or args.passage:
        raise InputError("--pairs: expected no --query and --passage beside it")
    if kind not in (".jsonl", ".tsv"):
        raise InputError(f"--pairs: expected .jsonl or .tsv, found {path!r}")
    with open(path, "rb") as file:
        for where, line in text_lines(path, file):
            if not line.strip():
                continue
            yield _tsv_pair(where, line) if kind == ".tsv" else _json_pair(where, line)


def _tsv_pair(where: str, line: str) -> Pair:
    cells = line.split("\t")
    if len(cells) != 2:
        raise InputError(f"{where}: expected two columns, found {len(cells)}")
    return cells[0], cells[1]


def _json_pair(where: str, line: str) -> Pair:
    row = json_object(where, line)
    for name in ("query", "passage"):
        if name not in row:
            raise InputError(f"{where}: expected a column {name!r}, found {list(row)}")
    return check_text(where, row["query"]), check_text(where, row["passage"])


def _scores(
    engine: Engine, pairs: list[Pair], weights: Sequence[float]
) -> dict[str, list[float]]:
    from m3fast.scoring import all_scores, combine

    # A query with a hundred candidates is encoded once.
    queries = {text: i for i, text in enumerate(dict.fromkeys(query for query, _ in pairs))}
    passages = {text: i for i, text in enumerate(dict.fromkeys(text for _, text in pairs))}
    found = all_scores(
        engine.encode(list(queries), show_progress=False),
        engine.encode(list(passages), show_progress=False),
        [(queries[query], passages[passage]) for query, passage in pairs],
    )
    every = combine(found, list(weights)) if len(found) == 3 else found
    return {name: values.tolist() for name, values in every.items()}
