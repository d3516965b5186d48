"""Token weights to the drop-in's dicts: defaultdicts of numpy scalars on both sides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench import peers
from bench.harness import OURS, Bench, Row, times
from bench.measure import Candidate
from bench.workloads import TINY

Batch = tuple[np.ndarray, np.ndarray]  # ids int32 [texts, length], weights float32 alike


def _batch(texts: int, length: int, seed: int) -> Batch:
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

    def run(batch: Batch) -> list[dict[str, np.float32]]:
        ids, weights = batch
        ends = np.arange(0, ids.size + 1, ids.shape[1], dtype=np.int32)
        rows = sparse_rows(ids.reshape(-1), weights.reshape(-1), ends, (0, 1, 2, 3))
        return model._dicts(SparseRows(*rows, 8000), np.float32)

    return run


def _loop(path: Path) -> Candidate:
    loop: Callable[[np.ndarray, list[int]], dict[str, np.float32]]
    loop = peers.reference_sparse_loop(path)
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
            note="FlagEmbedding: its own inner function, called as it calls it",
        ),
        {"FlagEmbedding": lambda: _loop(TINY), OURS: _ours},
        [_batch(texts, length, seed) for seed in range(4)],
        rounds=30,
        aims={"FlagEmbedding": times(5)},
        judge=_judge,
    )
