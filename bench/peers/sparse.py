"""Other ways from token weights to sparse vectors, on a CPU."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.core import measure
from bench.core.measure import Absent, Candidate

SPECIAL = (0, 1, 2, 3)  # ids that no sparse vector has
CHUNKS = (4, 16, 64)  # texts that the dense way scatters at once


@dataclass
class Weighted:
    """ids int32 [T], weights fp32 [T], ends int32 [N + 1] of packed texts."""

    ids: np.ndarray
    weights: np.ndarray
    ends: np.ndarray


def reference_loop(path: Path) -> Callable[[np.ndarray, list[int]], dict[str, Any]]:
    """FlagEmbedding's own function from token weights and ids of one text to its dict.

    It is local to a method, so its code object is taken from there instead of being rewritten.
    """
    from FlagEmbedding.inference.embedder.encoder_only import m3
    from transformers import AutoTokenizer

    name = "_process_token_weights"
    method = inspect.unwrap(m3.M3Embedder.encode_single_device)
    code = next((c for c in method.__code__.co_consts if getattr(c, "co_name", "") == name), None)
    if code is None or code.co_freevars != ("self",):
        raise Absent(f"this version of FlagEmbedding has no {name}")
    owner = types.SimpleNamespace(tokenizer=AutoTokenizer.from_pretrained(path))
    return types.FunctionType(code, vars(m3), name, None, (types.CellType(owner),))


def dense_scatter(chunk: int, vocab: int) -> Candidate:
    """Into kept vectors as wide as the vocabulary, some texts at a time, and their non-zeros."""
    rows = torch.zeros(chunk, vocab)

    def run(x: Weighted) -> list[torch.Tensor]:
        ids, weights = torch.from_numpy(x.ids).long(), torch.from_numpy(x.weights)
        ends, found = torch.from_numpy(x.ends), []
        for first in range(0, len(ends) - 1, chunk):
            cut = ends[first : first + chunk + 1]
            begin, end = int(cut[0]), int(cut[-1])
            texts = torch.repeat_interleave(torch.arange(len(cut) - 1), cut.diff())
            flat = texts * vocab + ids[begin:end]
            rows.view(-1).scatter_reduce_(0, flat, weights[begin:end], "amax")
            rows[:, list(SPECIAL)] = 0
            where = rows.nonzero()
            found.append(torch.stack([where[:, 0] + first, where[:, 1]]))
            found.append(rows[where[:, 0], where[:, 1]])
            rows.view(-1)[flat] = 0
        return found

    return run


def best_dense(vocab: int, x: Weighted, trial: bool = True) -> tuple[int, Candidate]:
    tried = {str(n): dense_scatter(n, vocab) for n in CHUNKS}
    best = measure.fastest(tried, x, x) if trial else str(CHUNKS[0])
    return int(best), tried[best]


def loop_rows(path: Path) -> Candidate:
    loop = reference_loop(path)
    return lambda x: [loop(x.weights[a:b], x.ids[a:b].tolist()) for a, b in pairwise(x.ends)]
