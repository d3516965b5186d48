"""MCLS computed plainly: CLS ids put in by hand, transformers' encoder, the mean of all CLS."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize
from transformers import XLMRobertaModel

CLS, PAD, EOS, UNK = range(4)
EVERY = 256  # the paper's


class Plain(NamedTuple):
    """What one text should give; dense and colbert not yet normalised."""

    n_tokens: int
    dense: torch.Tensor
    sparse: dict[int, float]
    colbert: torch.Tensor


def with_cls(ids: list[int]) -> tuple[list[int], list[int]]:
    """The sequence with its CLS tokens, and where they are."""
    out: list[int] = []
    places: list[int] = []
    for token in ids:
        if len(out) % EVERY == 0:
            places.append(len(out))
            if out:
                out.append(CLS)
        out.append(token)
    return out, places


def cut(ids: list[int], max_length: int) -> list[int]:
    """The longest start of a text, then its last id, that fits with the CLS tokens put in."""
    if len(with_cls(ids)[0]) <= max_length:
        return ids
    kept = (ids[: n - 1] + ids[-1:] for n in range(max_length, 0, -1))
    return next(part for part in kept if len(with_cls(part)[0]) <= max_length)


def plain_mcls(path: Path) -> Callable[..., Plain]:
    """plain(ids, max_length) of a checkpoint, by transformers in float32."""
    model = XLMRobertaModel.from_pretrained(path, add_pooling_layer=False, dtype=torch.float32)
    model.eval()
    sparse, colbert = (torch.load(path / f"{n}_linear.pt") for n in ("sparse", "colbert"))

    @cache
    def run(ids: tuple[int, ...]) -> Plain:
        sequence, places = with_cls(list(ids))
        given = torch.tensor([sequence])
        with torch.inference_mode():
            hidden = model(given, attention_mask=torch.ones_like(given)).last_hidden_state[0]
        weights = (hidden @ sparse["weight"].T + sparse["bias"]).relu()[:, 0].tolist()
        row: dict[int, float] = {}
        for token, weight in zip(sequence, weights, strict=True):
            if token not in (CLS, PAD, EOS, UNK) and weight > 0:
                row[token] = max(weight, row.get(token, 0.0))
        words = [i for i in range(len(sequence)) if i not in places]
        vectors = hidden[words] @ colbert["weight"].T + colbert["bias"]
        return Plain(len(sequence), hidden[places].mean(0), row, vectors)

    return lambda ids, max_length=8192: run(tuple(cut(list(ids), max_length)))


def random_ids(length: int, vocab: int) -> list[int]:
    rng = np.random.default_rng(length)
    ids = rng.integers(4, vocab, length).tolist()
    ids[-1], ids[0] = EOS, CLS
    return ids


def check(found, expected: list[Plain], tolerance: float = 2e-5) -> None:
    assert found.n_tokens.tolist() == [text.n_tokens for text in expected]
    dense = normalize(torch.stack([text.dense for text in expected]), dim=-1)
    np.testing.assert_allclose(found.dense, dense, rtol=0, atol=tolerance)
    for row, text in zip(found.sparse.to_dicts(), expected, strict=True):
        # A weight within rounding of zero may be positive on one side only.
        ids = row.keys() | text.sparse.keys()
        weights = {i: text.sparse.get(i, 0.0) for i in ids}
        assert {i: row.get(i, 0.0) for i in ids} == pytest.approx(weights, abs=tolerance)
    for vectors, text in zip(found.colbert, expected, strict=True):
        colbert = normalize(text.colbert, dim=-1)
        np.testing.assert_allclose(vectors, colbert, rtol=0, atol=tolerance)
