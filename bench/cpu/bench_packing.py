"""Ragged token ids to one packed row on a CPU, beside numpy and beside padding them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.core.harness import OURS, Bench, Row, times
from bench.core.measure import Candidate
from bench.core.workloads import TINY, ragged_lengths
from bench.peers import ops

VOCAB, PAD = 250002, 1


@dataclass
class Ragged:
    """Texts in input order: flat ids and offsets, an array each, and lists as transformers has."""

    ids: np.ndarray
    offsets: np.ndarray
    order: np.ndarray  # longest first
    arrays: list[np.ndarray]
    lists: dict[str, list[list[int]]]


def _ragged(lengths: list[int], seed: int) -> Ragged:
    offsets = ops.offsets(lengths).astype(np.int64)
    ids = np.random.default_rng(seed).integers(4, VOCAB, offsets[-1]).astype(np.int32)
    arrays = np.split(ids, offsets[1:-1])
    order = np.argsort(-np.array(lengths), kind="stable")
    lists = {"input_ids": [row.tolist() for row in arrays]}
    return Ragged(ids, offsets, order, arrays, lists)


def _ours(tokens: int, texts: int) -> Candidate:
    from m3fast.kernels.packing import pack, packed_entries

    out = np.empty(packed_entries(tokens, texts), np.int32)
    return lambda x: pack(x.ids, x.offsets, x.order, PAD, VOCAB, out=out)


def _numpy(tokens: int, texts: int) -> Candidate:
    """The same four arrays; positions of XLM-R, no text holding a literal pad token."""
    ids = np.empty(tokens, np.int32)
    count = np.arange(tokens, dtype=np.int32)

    def run(x: Ragged) -> tuple[np.ndarray, ...]:
        np.concatenate([x.arrays[i] for i in x.order], out=ids)
        lengths = np.diff(x.offsets)[x.order]
        ends = np.zeros(texts + 1, np.int32)
        np.cumsum(lengths, out=ends[1:])
        positions = count - np.repeat(ends[:-1], lengths) + (PAD + 1)
        return ids, positions, np.repeat(count[:texts], lengths), ends

    return run


def _transformers() -> Candidate:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TINY)
    return lambda x: tokenizer.pad(x.lists, return_tensors="np")


def _judge(first: Ragged, name: str, truth: Any, found: Any) -> str:
    wanted = [first.arrays[i] for i in first.order]
    if not isinstance(found, tuple):
        ids, real = found["input_ids"], found["attention_mask"].astype(bool)
        rows = [ids[i][real[i]] for i in first.order]
        same = all(np.array_equal(a, b) for a, b in zip(wanted, rows, strict=True))
        return "" if same else "other ids"
    lengths = [len(row) for row in wanted]
    expected = (
        np.concatenate(wanted),
        np.concatenate([np.arange(n) + PAD + 1 for n in lengths]),
        np.repeat(np.arange(len(lengths)), lengths),
        np.concatenate([[0], np.cumsum(lengths)]),
    )
    parts = zip(("ids", "positions", "texts", "cu_seqlens"), expected, found[:4], strict=True)
    return ", ".join(f"other {part}" for part, a, b in parts if not np.array_equal(a, b))


def test_pack(bench: Bench) -> None:
    count = bench.pick(2048, 6)
    lengths = ragged_lengths(count, high=bench.pick(512, 30))
    inputs = [_ragged(lengths, seed) for seed in range(4)]
    tokens = sum(lengths)
    bench.compare(
        Row(
            f"pack ragged ids on a CPU, {count} texts",
            shape=f"{count} texts of {min(lengths)} to {max(lengths)} tokens, longest first",
            dtype="int32",
            tokens=tokens,
            padding=count * max(lengths) / tokens,
            moved=4.0 * (4 * tokens + count),
            note="ids, positions, text of each token, cu_seqlens; transformers: tokenizer.pad, "
            "ids and mask only",
        ),
        {
            OURS: lambda: _ours(tokens, count),
            "numpy": lambda: _numpy(tokens, count),
            "transformers": _transformers,
        },
        inputs,
        rounds=20,
        aims={"numpy": times(1), "transformers": times(5)},
        judge=lambda name, truth, found: _judge(inputs[0], name, truth, found),
    )
