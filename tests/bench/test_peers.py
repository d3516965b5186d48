"""The benchmarks' peers and judges: the same model, and differences that are seen."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench.core import gputime, workloads
from bench.cpu import child_load
from bench.peers import encodings, infinity, ops, strong_gpu
from bench.serve import child_server

from m3fast import Engine


def test_strong_baseline_is_the_same_model() -> None:
    """What it returns on a CPU, and the half of a layer that it compiles."""
    from m3fast import Engine
    from m3fast.checkpoint.weights import load_weights
    from m3fast.kernels.reference import pack_ref, varlen_attention_ref

    engine = Engine.from_pretrained(workloads.TINY, device="cpu", dtype="float32")
    config = engine.config
    weights = load_weights(workloads.TINY, config, "cpu", torch.float32)
    rows = [[0, 17, 99, 2], [0, 5, 2]]
    found = engine.encode(rows)
    ids, positions, _, ends = pack_ref(rows, range(2), config.position_pad_id)

    def attend(qkv: torch.Tensor) -> torch.Tensor:
        return varlen_attention_ref(qkv, ends)

    def layer(x: torch.Tensor, its: Any, attend: Any, config: Any) -> torch.Tensor:
        qkv = torch.nn.functional.linear(x, its.qkv.weight, its.qkv.bias)
        attended = attend(qkv.view(len(x), 3, config.n_heads, config.head_dim))
        tensors = strong_gpu.layer_tensors(its)
        return strong_gpu.after_attention(x, attended, *tensors, config.layer_norm_eps)

    for way in (strong_gpu.plain_layer, layer):
        dense, sparse, colbert = strong_gpu.encode(
            config, weights, ids.long(), positions.long(), ends[:-1].long(), attend, way
        )
        assert np.allclose(dense, found.dense, atol=1e-5)
        assert np.allclose(colbert[[1, 2, 3, 5, 6]], found.colbert.values, atol=1e-5)
        weight_of = found.sparse.to_dicts()[0].get(17, 0.0)
        assert sparse[1].item() == pytest.approx(weight_of, abs=1e-5)


@pytest.fixture
def any_device(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """GPU peers that are plain torch run on a CPU too, if they are let."""
    monkeypatch.setattr(ops, "cuda_only", lambda device: None)
    torch.manual_seed(0)
    return torch.device("cpu")


def test_attention_peer(any_device: torch.device) -> None:
    from m3fast.kernels.reference import varlen_attention_ref

    qkv, ends = torch.randn(12, 3, 2, 8), torch.tensor([0, 4, 8, 12], dtype=torch.int32)
    found = ops.dense_sdpa(any_device)(types.SimpleNamespace(qkv=qkv, longest=4))
    judge = ops.near(varlen_attention_ref(qkv, ends), 1e-5)
    assert judge("", None, found) == "" and judge("", None, None) == ""
    assert "off by" in judge("", None, found + 1)
    assert "off by" in judge("", None, found * float("nan"))
    assert judge("", None, found[1:]) == "shape [11, 16], not [12, 16]"


def test_maxsim_peer() -> None:
    torch.manual_seed(0)
    from m3fast.kernels.reference import maxsim_ref

    queries, docs = torch.randn(6, 8), torch.randn(9, 8)
    q_ends, ends = torch.tensor([0, 3, 6]), torch.tensor([0, 2, 9], dtype=torch.int32)
    x = types.SimpleNamespace(queries=queries, docs=docs, ends=ends, n_queries=2)
    found = ops.segment_max()(x)
    assert torch.allclose(found, maxsim_ref(queries, q_ends, docs, ends), atol=1e-5)


def test_a_copy_is_no_answer_to_judge() -> None:
    found = gputime.copy_of(4096, torch.device("cpu"))(None)
    assert ops.near(torch.ones(2), 0)("a copy", None, found) == ""


def test_sparse_peer() -> None:
    x = types.SimpleNamespace(
        ids=torch.tensor([0, 5, 5, 7, 0, 7], dtype=torch.int32),
        weights=torch.tensor([9.0, 0.2, 0.5, 0.0, 9.0, 0.1]),
        texts=torch.tensor([0, 0, 0, 0, 1, 1], dtype=torch.int32),
        n_texts=2,
        dropped=[0],
    )
    found = ops.dense_scatter(10)(x)
    assert torch.equal(found, torch.tensor([[0.0, 1.0], [5.0, 7.0], [0.5, 0.1]]))


def _encoded(**changes: Any) -> dict[str, Any]:
    encoded = {
        "dense_vecs": np.ones((1, 4)),
        "lexical_weights": [{"7": 0.5}],
        "colbert_vecs": [np.ones((2, 4))],
    }
    return encoded | changes


@pytest.mark.parametrize(
    "changes",
    [
        {"dense_vecs": np.full((1, 4), 1.1)},
        {"dense_vecs": np.full((1, 4), np.nan)},
        {"dense_vecs": np.ones((1, 1))},
        {"lexical_weights": [{"7": 0.5, "8": 0.2}]},
        {"lexical_weights": [{}]},
        {"lexical_weights": [{"7": np.nan}]},
        {"colbert_vecs": [np.ones((1, 4))]},
        {"colbert_vecs": [np.full((2, 4), np.nan)]},
        {"lexical_weights": [{"7": 0.5, "8": np.nan}]},
    ],
)
def test_encodings_that_differ_are_seen(changes: dict[str, Any]) -> None:
    judge = encodings.differ(1e-3)
    assert judge("peer", _encoded(), _encoded()) == ""
    assert judge("peer", _encoded(), _encoded(**changes))


def test_sentence_transformers_computes_in_fp32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left to itself it takes the dtype in config.json: fp16, wrong by 4e-4 and no equal."""
    pytest.importorskip("sentence_transformers")
    monkeypatch.setattr(infinity, "CACHE", tmp_path)
    text = "What is BGE M3?"
    ours = Engine.from_pretrained(workloads.TINY, dtype="float32").encode([text], colbert=False)
    folder = infinity.folder(workloads.TINY)
    *_, loaded = child_load.sentence_transformers(str(folder), 1, text)
    served = child_server.sentence_transformers(workloads.TINY)([text], 1)
    for theirs in (loaded["dense_vecs"][None], served):
        np.testing.assert_allclose(theirs, ours.dense, atol=1e-6, rtol=0)
