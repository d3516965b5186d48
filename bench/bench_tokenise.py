"""A batch of texts to token ids, truncated at 512: m3fast's tokenizer beside AutoTokenizer."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.harness import OURS, Bench, Row
from bench.measure import Candidate
from bench.workloads import TINY, made_up_texts


def _ours() -> Candidate:
    from m3fast.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_dir(TINY)
    return lambda texts: tokenizer.encode(texts, 512)


def _transformers() -> Candidate:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TINY)
    return lambda texts: tokenizer(texts, truncation=True, max_length=512)["input_ids"]


def _judge(name: str, truth: Any, found: Any) -> str:
    if not isinstance(found, list):
        found = [row.tolist() for row in np.split(found.ids, found.offsets[1:-1])]
    return "" if truth == found else "other token ids"


def test_tokenise(bench: Bench) -> None:
    count, n_words = bench.pick((512, 120), (8, 10))
    inputs = [made_up_texts(count, n_words, seed) for seed in range(4)]
    tokens = int(_ours()(inputs[0]).offsets[-1])
    bench.compare(
        Row(
            f"tokenise, {count} texts of {n_words} words",
            shape=f"{count} texts of {n_words} words that are in no vocabulary",
            tokens=tokens,
            unit="tokens/s",
        ),
        {"transformers": _transformers, OURS: _ours},
        inputs,
        rounds=20,
        judge=_judge,
    )
