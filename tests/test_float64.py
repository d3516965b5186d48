"""The whole encoder and its heads against the formulas written out in float64 numpy."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import TEXTS, make_checkpoint
from safetensors.torch import load_file

from m3fast import Engine

erf = np.vectorize(math.erf)


def norm(x, w, name):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x, w, name):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def hidden_states(w, ids, heads: int, layers: int):
    real = ids != 1
    positions = np.cumsum(real) * real + 1
    x = w["embeddings.word_embeddings.weight"][ids]
    x = x + w["embeddings.position_embeddings.weight"][positions]
    x = norm(x + w["embeddings.token_type_embeddings.weight"][0], w, "embeddings.LayerNorm")
    for i in range(layers):
        base = f"encoder.layer.{i}"
        q, k, v = (
            linear(x, w, f"{base}.attention.self.{p}").reshape(len(ids), heads, -1).swapaxes(0, 1)
            for p in ("query", "key", "value")
        )
        scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (shares / shares.sum(-1, keepdims=True)) @ v
        mixed = mixed.swapaxes(0, 1).reshape(x.shape)
        x = norm(x + linear(mixed, w, f"{base}.attention.output.dense"), w,
                 f"{base}.attention.output.LayerNorm")
        inner = linear(x, w, f"{base}.intermediate.dense")
        inner = 0.5 * inner * (1 + erf(inner / np.sqrt(2)))
        x = norm(x + linear(inner, w, f"{base}.output.dense"), w, f"{base}.output.LayerNorm")
    return x


@pytest.mark.parametrize("seed", range(3))
def test_encoder_and_heads(tmp_path: Path, seed: int) -> None:
    path = make_checkpoint(tmp_path, seed=seed, colbert_dim=24, layers=3)
    engine = Engine.from_pretrained(path, device="cpu", dtype="float32")
    found = engine.encode(TEXTS)
    only = engine.encode(TEXTS, sparse=False, colbert=False).dense
    state = load_file(path / "model.safetensors")
    for head in ("colbert_linear", "sparse_linear"):
        loaded = torch.load(path / f"{head}.pt", weights_only=True)
        state |= {f"{head}.{name}": tensor for name, tensor in loaded.items()}
    w = {name: tensor.double().numpy() for name, tensor in state.items()}
    tokens = engine.tokenizer.encode(TEXTS, 512)
    for i, text in enumerate(TEXTS):
        ids = tokens.ids[tokens.offsets[i] : tokens.offsets[i + 1]]
        hidden = hidden_states(w, ids, engine.config.n_heads, engine.config.n_layers)
        dense = hidden[0] / np.linalg.norm(hidden[0])
        np.testing.assert_allclose(found.dense[i], dense, atol=2e-6, err_msg=text)
        np.testing.assert_allclose(only[i], dense, atol=2e-6, err_msg=text)
        vectors = linear(hidden[1:], w, "colbert_linear")
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        np.testing.assert_allclose(found.colbert[i], vectors, atol=3e-6, err_msg=text)
        weights: dict[int, float] = {}
        raw = linear(hidden, w, "sparse_linear")[:, 0]
        for token, weight in zip(ids.tolist(), raw, strict=True):
            if weight > 1e-5 and token not in (0, 1, 2, 3):
                weights[token] = max(weight, weights.get(token, 0.0))
        # Twice that is in `weights` whatever the rounding; what is less may be in either.
        row = {k: v for k, v in found.sparse.to_dicts()[i].items() if v > 2e-5 or k in weights}
        assert list(row) == list(weights), text
        np.testing.assert_allclose(list(row.values()), list(weights.values()), atol=5e-6)
