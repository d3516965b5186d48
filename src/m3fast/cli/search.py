"""`m3fast search`: ranks the texts of a file for queries, in memory that does not grow."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import m3fast
from m3fast.cli.corpus import Corpus, Record, check_text
from m3fast.cli.mode_weights import parse_weights
from m3fast.cli.store import read_npz
from m3fast.cli.table import fit, table, terminal_columns
from m3fast.errors import InputError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from m3fast import Embeddings, Engine

MODES = ("dense", "sparse", "colbert")
CHUNK = 1024  # stored texts scored at a time


@dataclass(frozen=True, slots=True, order=True)
class Hit:
    """A text that was found; hits sort best first, then in input order."""

    key: float  # the score, negated
    row: int
    record: Record = field(compare=False)
    scores: dict[str, float] = field(compare=False)


def run(args: argparse.Namespace) -> int:
    """Print the best texts for each query.

    Raises:
        M3FastError: bad input, arguments or model.
        OSError: a file cannot be read.
    """
    queries = [check_text(f"query {i}", text) for i, text in enumerate(args.queries, 1)]
    corpus = Corpus.check(args.corpus, args.text_column, args.id_column)
    weights = parse_weights(args.weights)
    vectors: str | None = args.vectors
    stored = None if vectors is None else read_npz(vectors)
    if args.id_column is None and not args.no_ids:
        corpus = corpus.with_ids()
    engine = m3fast.Engine.from_pretrained(
        args.model, device=args.device, dtype=args.dtype, max_length=args.max_length
    )
    mode = args.mode or ("hybrid" if engine.outputs.sparse else "dense")
    used = {mode: 1.0} if mode != "hybrid" else dict(zip(MODES, weights, strict=True))
    flags: dict[str, Any] = {name: used.get(name, 0.0) > 0 for name in MODES}
    if vectors is None or stored is None:
        windows = _encoded(engine, corpus, flags)
    else:
        windows = _stored(vectors, stored, corpus, flags, args.model)
    best = _rank(engine.encode(queries, **flags), windows, weights, args.k)
    for query, hits in zip(queries, best, strict=True):
        _print_json(query, hits) if args.json else _print_table(query, hits)
    return 0


def _encoded(
    engine: Engine, corpus: Corpus, flags: dict[str, Any]
) -> Iterator[tuple[list[Record], Embeddings]]:
    records: list[Record] = []

    def texts() -> Iterator[str]:
        for record in corpus.records():
            records.append(record)
            yield record.text

    for window in engine.encode_iter(texts(), **flags):
        yield records, window
        records.clear()


def _stored(
    path: str,
    stored: tuple[Embeddings, dict[str, Any]],
    corpus: Corpus,
    flags: dict[str, Any],
    model: str,
) -> Iterator[tuple[list[Record], Embeddings]]:
    found, meta = stored
    missing = [m for m in MODES if flags[m] and getattr(found, m) is None]
    if missing:
        raise InputError(f"--vectors: expected {missing} in {path}, found none")
    if meta.get("model") != str(Path(model)):
        raise InputError(f"--model: expected {meta.get('model')!r} as in {path}, found {model!r}")
    records = corpus.records()
    for start in range(0, len(found), CHUNK):
        window = found[start : start + CHUNK]
        texts = list(islice(records, len(window)))
        if len(texts) == len(window):
            yield texts, window
            continue
        raise InputError(
            f"--vectors: expected one row per text of {corpus.path}, found {len(found)} rows "
            f"for {start + len(texts)} texts"
        )
    if next(records, None) is not None:
        raise InputError(
            f"--vectors: expected one row per text of {corpus.path}, found only {len(found)} rows"
        )


def _rank(
    queries: Embeddings,
    windows: Iterator[tuple[list[Record], Embeddings]],
    weights: tuple[float, float, float],
    k: int,
) -> list[list[Hit]]:
    from m3fast.scoring import all_scores, hybrid_scores

    best: list[list[Hit]] = [[] for _ in range(len(queries))]
    seen = 0
    for records, window in windows:
        scores = all_scores(queries, window)
        total = hybrid_scores(scores, weights) if len(scores) > 1 else next(iter(scores.values()))
        for i, hits in enumerate(best):
            top = _top(total[i], k)
            hits += [
                Hit(
                    -float(total[i, j]),
                    seen + j,
                    records[j],
                    {name: float(found[i, j]) for name, found in scores.items()},
                )
                for j in top.tolist()
            ]
            hits.sort()
            del hits[k:]
        seen += len(window)
    return best


def _top(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    return np.argsort(-scores, kind="stable")[:k]


def _print_json(query: str, hits: list[Hit]) -> None:
    for rank, hit in enumerate(hits, 1):
        line: dict[str, Any] = {"query": query, "rank": rank, "row": hit.row}
        if hit.record.id is not None:
            line["id"] = hit.record.id
        line |= {"score": -hit.key, "scores": hit.scores, "text": hit.record.text}
        print(json.dumps(line, ensure_ascii=False))


def _print_table(query: str, hits: list[Hit]) -> None:
    print(fit(query, terminal_columns()))
    if not hits:
        print("(no texts)\n")
        return
    modes = list(hits[0].scores) if len(hits[0].scores) > 1 else []
    rows = [
        [
            str(rank),
            f"{-hit.key:.4f}",
            *(f"{hit.scores[mode]:.4f}" for mode in modes),
            str(hit.row) if hit.record.id is None else fit(hit.record.id, 20),
            hit.record.text,
        ]
        for rank, hit in enumerate(hits, 1)
    ]
    name = "row" if hits[0].record.id is None else "id"
    print(table(["", "score", *modes, name, "text"], rows, texts=1), end="\n\n")
