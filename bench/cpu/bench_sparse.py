"""Lexical weights on a CPU: token weights to dicts and to CSR rows, and scores of both."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.core.harness import OURS, Bench, Row, times
from bench.core.measure import Candidate
from bench.core.workloads import TINY
from bench.peers import ops, sparse
from bench.peers.sparse import CHUNKS, SPECIAL, Weighted

PaddedRows = tuple[np.ndarray, np.ndarray]  # ids int32 [texts, length], weights float32 alike
VOCAB = 250002


def _batch(texts: int, length: int, seed: int) -> PaddedRows:
    """As in real text: 265 different ids among 512, and 95 % of the weights above zero.

    Counted over an English novel, and over the weights that the trained model gives seven texts.
    """
    rng = np.random.default_rng(seed)
    ids = (4 + 7990 * rng.random((texts, length)) ** 8).astype(np.int32)
    ids[:, 0], ids[:, -1] = 0, 2
    weights = rng.random((texts, length), dtype=np.float32) * 0.3
    weights[rng.random((texts, length)) < 0.05] = 0
    return ids, weights


def _ours() -> Candidate:
    from m3fast import BGEM3FlagModel, SparseRows
    from m3fast.kernels.sparse import sparse_rows

    model = BGEM3FlagModel(str(TINY), use_fp16=False, devices="cpu")

    def run(batch: PaddedRows) -> list[dict[str, np.float32]]:
        ids, weights = batch
        ends = np.arange(0, ids.size + 1, ids.shape[1], dtype=np.int32)
        rows = sparse_rows(ids.reshape(-1), weights.reshape(-1), ends, (0, 1, 2, 3))
        return model._dicts(SparseRows(*rows, VOCAB), np.float32)

    return run


def _loop(path: Path) -> Candidate:
    loop: Callable[[np.ndarray, list[int]], dict[str, np.float32]]
    loop = sparse.reference_loop(path)
    return lambda batch: list(map(loop, batch[1], batch[0].tolist()))


def _judge(name: str, truth: list[dict], found: list[dict]) -> str:
    for i, (a, b) in enumerate(zip(truth, found, strict=True)):
        # Order, keys, values and their type: all that a caller can see.
        if list(a.items()) != list(b.items()) or set(map(type, a.values())) != set(
            map(type, b.values())
        ):
            return f"text {i} has another dict"
    return ""


def test_sparse_dicts(bench: Bench) -> None:
    texts, length = bench.pick((256, 512), (8, 64))
    bench.compare(
        Row(
            f"sparse dicts, {texts} x {length} tokens",
            shape=f"{texts} texts of {length} tokens, 265 ids in each; 95 % of weights positive",
            tokens=texts * length,
            note="a defaultdict of numpy scalars per text on both sides; FlagEmbedding: its own "
            "inner function, called as it calls it",
        ),
        {"FlagEmbedding": lambda: _loop(TINY), OURS: _ours},
        [_batch(texts, length, seed) for seed in range(4)],
        rounds=30,
        aims={"FlagEmbedding": times(5)},
        judge=_judge,
    )


def _weighted(lengths: np.ndarray, vocab: int, seed: int) -> Weighted:
    rng = np.random.default_rng(seed)
    ends = ops.offsets(lengths)
    ids = (4 + (vocab - 4) * rng.random(ends[-1]) ** 8).astype(np.int32)
    ids[ends[:-1]], ids[ends[1:] - 1] = 0, 2
    weights = rng.random(len(ids), dtype=np.float32) * 0.3 + 1e-6
    weights[rng.random(len(ids)) < 0.05] = 0
    return Weighted(ids, weights, ends)


def _rows(found: Any, n_texts: int) -> list[dict[int, float]]:
    """What any of the candidates returns as one dict per text."""
    rows: list[dict[int, float]] = [{} for _ in range(n_texts)]
    if isinstance(found, tuple):
        indptr, indices, values = found
        texts = np.repeat(np.arange(n_texts), np.diff(indptr)).tolist()
        triples = zip(texts, indices.tolist(), values.tolist(), strict=True)
    elif isinstance(found[0], dict):
        return [{int(i): float(w) for i, w in row.items()} for row in found]
    else:
        where, values = torch.cat(found[::2], 1).tolist(), torch.cat(found[1::2]).tolist()
        triples = zip(*where, values, strict=True)
    for text, i, weight in triples:
        rows[text][i] = weight
    return rows


def _same_rows(expected: list[dict], name: str, truth: Any, found: Any) -> str:
    rows = _rows(found, len(expected))
    wrong = [i for i, (a, b) in enumerate(zip(expected, rows, strict=True)) if a != b]
    return f"{len(wrong)} rows differ, the first is {wrong[0]}" if wrong else ""


def test_sparse_rows(bench: Bench) -> None:
    from m3fast.kernels.reference import sparse_rows_ref
    from m3fast.kernels.sparse import sparse_rows

    rng, (count, vocab) = np.random.default_rng(0), bench.pick((128, VOCAB), (5, 500))
    lengths = rng.gamma(3, 60, count).clip(5, bench.pick(512, 30)).astype(int)
    inputs = [_weighted(lengths, vocab, seed) for seed in range(4)]
    first, tokens = inputs[0], int(lengths.sum())
    given = (torch.from_numpy(part) for part in (first.ids, first.weights, first.ends))
    expected = sparse_rows_ref(*given, SPECIAL)
    chunk, dense = sparse.best_dense(vocab, first, trial=not bench.scale.smoke)
    entries = sum(map(len, expected))
    bench.compare(
        Row(
            f"sparse to CSR on a CPU, {count} texts",
            shape=f"{tokens} tokens of texts of {min(lengths)} to {max(lengths)}, {vocab} ids",
            tokens=tokens,
            moved=8.0 * (tokens + entries + count),
            note=f"dense scatter: torch's scatter_reduce and nonzero, {chunk} texts at a time, the "
            f"best of {CHUNKS}; FlagEmbedding makes dicts",
        ),
        {
            OURS: lambda: lambda x: sparse_rows(x.ids, x.weights, x.ends, SPECIAL),
            "dense scatter": lambda: dense,
            "FlagEmbedding": partial(sparse.loop_rows, TINY),
        },
        inputs,
        rounds=20,
        aims={"dense scatter": times(8), "FlagEmbedding": times(5)},
        judge=partial(_same_rows, expected),
    )


Csr = tuple[np.ndarray, np.ndarray, np.ndarray]


def _csr(n: int, length: int, vocab: int, seed: int) -> Csr:
    from m3fast.kernels.sparse import sparse_rows

    x = _weighted(np.full(n, length), vocab, seed)
    return sparse_rows(x.ids, x.weights, x.ends, SPECIAL)


def _dicts(rows: Csr) -> list[dict[str, float]]:
    indptr, indices, values = rows
    keys, numbers, ends = [*map(str, indices.tolist())], [*values], indptr.tolist()
    return [dict(zip(keys[a:b], numbers[a:b], strict=True)) for a, b in pairwise(ends)]


def _scores_agree(name: str, truth: np.ndarray, found: np.ndarray) -> str:
    if truth.shape != found.shape:
        return f"shape {list(found.shape)}, not {list(truth.shape)}"
    gap = np.abs(truth - found).max()
    return "" if gap <= 1e-5 * np.abs(truth).max() else f"scores off by {gap:.2g}"


def test_lexical_scores(bench: Bench) -> None:
    """All pairs from CSR rows, which is how m3fast keeps them."""
    from m3fast.kernels.sparse import lexical_scores

    (n, m), vocab = bench.pick(((100, 2000), VOCAB), ((3, 7), 500))
    inputs = [(_csr(n, 20, vocab, seed), _csr(m, 180, vocab, seed + 50)) for seed in range(4)]
    (_, _, q), (_, _, d) = inputs[0]

    def scipy_product() -> Candidate:
        from scipy.sparse import csr_array

        def run(x: tuple[Csr, Csr]) -> np.ndarray:
            (qp, qi, qv), (dp, di, dv) = x
            queries = csr_array((qv, qi, qp), (n, vocab))
            return (queries @ csr_array((dv, di, dp), (m, vocab)).T).toarray()

        return run

    bench.compare(
        Row(
            f"lexical scores, {n} queries x {m} passages, CSR",
            shape=f"queries of 20 and passages of 180 tokens: {len(q)} and {len(d)} weights",
            corpus=m,
            moved=8.0 * (len(q) + len(d)) + 4.0 * n * m,
            note="rows as the encoder leaves them on both sides",
        ),
        {"scipy": scipy_product, OURS: lambda: lambda x: lexical_scores(*x)},
        inputs,
        rounds=30,
        aims={"scipy": times(1)},
        judge=_scores_agree,
    )


def test_lexical_scores_of_dicts(bench: Bench) -> None:
    """FlagEmbedding's method and its double, on the dicts that they return."""
    n, m = bench.pick((50, 400), (3, 7))
    vocab = bench.pick(VOCAB, 500)
    inputs = [
        (_dicts(_csr(n, 20, vocab, seed)), _dicts(_csr(m, 180, vocab, seed + 50)))
        for seed in range(4)
    ]

    def flag_embedding() -> Candidate:
        from FlagEmbedding.inference.embedder.encoder_only.m3 import M3Embedder

        return lambda x: M3Embedder.compute_lexical_matching_score(None, *x)  # self is not used

    def ours() -> Candidate:
        from m3fast import BGEM3FlagModel

        model = BGEM3FlagModel(str(TINY), use_fp16=False, devices="cpu")
        return lambda x: model.compute_lexical_matching_score(*x)

    bench.compare(
        Row(
            f"lexical scores, {n} queries x {m} passages, dicts",
            shape="queries of 20 and passages of 180 tokens",
            corpus=m,
        ),
        {"FlagEmbedding": flag_embedding, OURS: ours},
        inputs,
        rounds=15,
        aims={"FlagEmbedding": times(1)},
        judge=_scores_agree,
    )
