"""A batch of texts to token ids, truncated at 512: m3fast's tokenizer beside AutoTokenizer."""

from __future__ import annotations

import json
import unicodedata
from functools import cache
from typing import Any

import numpy as np
import pytest

from bench.core.harness import OURS, Bench, Row
from bench.core.measure import Candidate
from bench.core.workloads import TINY, made_up_texts


def _ours() -> Candidate:
    from m3fast.text.tokenizer import Tokenizer

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


SCRIPTS = ("LATIN", "CYRILLIC", "GREEK", "ARABIC", "DEVANAGARI", "HANGUL", "THAI", "HIRAGANA",
           "CJK")  # fmt: skip
UNSPACED = SCRIPTS[-3:]


@cache
def _pieces() -> dict[str, list[str]]:
    """Pieces of m3fast-tiny's vocabulary by the script that all their letters belong to."""
    vocab = json.loads((TINY / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    found: dict[str, list[str]] = {script: [] for script in SCRIPTS}
    for piece, _ in vocab:
        word = piece.strip("▁")
        scripts = {unicodedata.name(c, "?").split()[0] for c in word}
        if len(scripts) == 1 and (script := scripts.pop()) in found:
            found[script].append(word)
    return found


def _mixed_scripts(count: int, n_words: int, seed: int) -> list[str]:
    """Texts of the scripts in turn, of words of one to three pieces."""
    rng = np.random.default_rng(seed)
    texts = []
    for i in range(count):
        script = SCRIPTS[i % len(SCRIPTS)]
        drawn, sizes = rng.choice(_pieces()[script], (n_words, 3)), rng.integers(1, 4, n_words)
        words = ["".join(row[:size]) for row, size in zip(drawn.tolist(), sizes, strict=True)]
        texts.append(("" if script in UNSPACED else " ").join(words))
    return texts


def _compare(bench: Bench, name: str, shape: str, inputs: list[list[str]], rounds: int) -> None:
    bench.compare(
        Row(
            name,
            shape=shape,
            tokens=int(_ours()(inputs[0]).offsets[-1]),
            unit="tokens/s",
        ),
        {"transformers": _transformers, OURS: _ours},
        inputs,
        rounds=rounds,
        judge=_judge,
    )


def test_tokenise(bench: Bench) -> None:
    count, n_words = bench.pick((512, 120), (8, 10))
    _compare(
        bench,
        f"tokenise, {count} texts of {n_words} words",
        f"{count} texts of {n_words} words that are in no vocabulary",
        [made_up_texts(count, n_words, seed) for seed in range(4)],
        rounds=20,
    )


def test_tokenise_scripts(bench: Bench) -> None:
    count, n_words = bench.pick((513, 100), (18, 10))
    _compare(
        bench,
        f"tokenise, {count} texts, nine scripts",
        f"{count} texts of {n_words} words, a script each in turn",
        [_mixed_scripts(count, n_words, seed) for seed in range(4)],
        rounds=20,
    )


@pytest.mark.parametrize("count", [1, 512])
def test_tokenise_queries(bench: Bench, count: int) -> None:
    real, n_words = bench.pick(count, min(count, 8)), 8
    _compare(
        bench,
        f"tokenise, {real} {'query' if real == 1 else 'queries'} of {n_words} words",
        f"{real} texts of {n_words} words that are in no vocabulary, in one call",
        [made_up_texts(real, n_words, seed) for seed in range(4)],
        rounds=200 if count == 1 else 50,
    )
