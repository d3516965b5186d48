"""One small adapter per peer: a maker returns a function from texts (or arrays) to results.

A maker raises ImportError or Absent where its peer is not installed; the row then says so.
Adapters of encoders return FlagEmbedding's dict of dense_vecs, lexical_weights, colbert_vecs.
"""

from __future__ import annotations

import inspect
import types
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import onnxgraph
from bench.measure import Absent
from bench.workloads import Shape

Encoded = dict[str, Any]
Encoder = Callable[[Any], Encoded]  # of a list of texts, or of one str
ALL = {"return_dense": True, "return_sparse": True, "return_colbert_vecs": True}


def m3fast(path: Path, bf16: bool = False) -> Encoder:
    from m3fast import BGEM3FlagModel

    model = BGEM3FlagModel(str(path), use_fp16=False, use_bf16=bf16, devices="cpu")
    return lambda texts: model.encode(texts, **ALL)


def flag_embedding(path: Path, batch_size: int = 256) -> Encoder:
    from FlagEmbedding import BGEM3FlagModel

    model = BGEM3FlagModel(str(path), use_fp16=False, devices="cpu", batch_size=batch_size)
    return lambda texts: model.encode(texts, **ALL)


def bare_linears(
    shape: Shape, tokens: int, dtype: torch.dtype, batch: int = 4096
) -> Callable[[Any], None]:
    """The four GEMMs of every layer over `tokens` packed tokens, and nothing else.

    Products go into kept buffers: fresh 40 MB results would be page faults, not arithmetic.
    """
    random = torch.Generator().manual_seed(0)
    hidden, ffn = shape.hidden, shape.ffn
    sizes = [(3 * hidden, hidden), (hidden, hidden), (ffn, hidden), (hidden, ffn)]
    layers = [
        [(torch.randn(size, generator=random) / 32).to(dtype) for size in sizes]
        for _ in range(shape.layers)
    ]
    count = -(-tokens // batch)
    rows = -(-tokens // count)
    x = {n: torch.randn(rows, n, generator=random).to(dtype) for n in (hidden, ffn)}
    out = {n: torch.empty(rows, n, dtype=dtype) for n, _ in sizes}

    def run(_: Any) -> None:
        with torch.inference_mode():
            for _ in range(count):
                for weights in layers:
                    for weight in weights:
                        torch.mm(x[weight.shape[1]], weight.t(), out=out[weight.shape[0]])

    return run


def onnx_runtime(path: Path, batch_size: int, threads: int) -> Encoder:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Its threads would spin on into the next candidate's turn.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    model = onnxgraph.export(path, fused=True)
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return _padded(path, batch_size, lambda feeds: session.run(None, feeds))


def openvino(path: Path, batch_size: int, threads: int) -> Encoder:
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        # Pinning would bind the thread that every other candidate runs on.
        "ENABLE_CPU_PINNING": False,
    }
    model = openvino.Core().compile_model(onnxgraph.export(path, fused=False), "CPU", settings)

    def run(feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        found = model(feeds)
        return [found[i] for i in range(3)]

    return _padded(path, batch_size, run)


def _padded(
    path: Path, batch_size: int, run: Callable[[dict[str, np.ndarray]], Sequence[np.ndarray]]
) -> Encoder:
    """Texts sorted by length, padded batch by batch, run, and unpadded again."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.enable_truncation(512)
    tokenizer.no_padding()

    def encode(texts: str | list[str]) -> Encoded:
        if isinstance(texts, str):
            return {key: rows[0] for key, rows in encode([texts]).items()}
        rows = [e.ids for e in tokenizer.encode_batch(texts)]
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        dense: list[Any] = [None] * len(rows)
        sparse: list[Any] = [None] * len(rows)
        colbert: list[Any] = [None] * len(rows)
        for start in range(0, len(order), batch_size):
            chunk = order[start : start + batch_size]
            ids = np.ones((len(chunk), len(rows[chunk[0]])), np.int64)
            for row, i in zip(ids, chunk, strict=True):
                row[: len(rows[i])] = rows[i]
            vectors, weights, tokens = run({"ids": ids, "mask": (ids != 1).astype(np.float32)})
            for row, i in enumerate(chunk):
                n = len(rows[i])
                dense[i] = vectors[row]
                sparse[i] = _lexical(rows[i], weights[row, :n])
                colbert[i] = tokens[row, : n - 1].copy()
        vectors = np.stack(dense)
        return {"dense_vecs": vectors, "lexical_weights": sparse, "colbert_vecs": colbert}

    return encode


def _lexical(ids: list[int], weights: np.ndarray) -> dict[str, Any]:
    best: dict[str, Any] = defaultdict(int)
    for i, w in zip(ids, weights, strict=True):
        if i > 3 and w > best[str(i)]:
            best[str(i)] = w
    return defaultdict(int, {i: w for i, w in best.items() if w > 0})


def reference_sparse_loop(path: Path) -> Callable[[np.ndarray, list[int]], dict[str, Any]]:
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


def differ(tolerance: float) -> Callable[[str, Encoded, Encoded], str]:
    """A judge of encodings: the largest difference of each output, where it is above tolerance."""

    def judge(name: str, truth: Encoded | None, found: Encoded | None) -> str:
        if truth is None or found is None:  # bare linears encode nothing
            return ""
        rows = zip(_rows(truth["lexical_weights"]), _rows(found["lexical_weights"]), strict=True)
        vectors = zip(_rows(truth["colbert_vecs"]), _rows(found["colbert_vecs"]), strict=True)
        lexical = [a.get(k, 0) - b.get(k, 0) for a, b in rows for k in {*a, *b}]
        # np.max, unlike max, keeps a NaN.
        worst = {
            "dense": _gap(truth["dense_vecs"], found["dense_vecs"]),
            "sparse": np.max(np.abs(lexical), initial=0.0),
            "colbert": np.max([_gap(a, b) for a, b in vectors], initial=0.0),
        }
        # Not `v > tolerance`, which NaN passes.
        return ", ".join(f"{k} off by {v:.2g}" for k, v in worst.items() if not v <= tolerance)

    return judge


def _rows(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _gap(a: np.ndarray, b: np.ndarray) -> float:
    return np.abs(a - b).max() if a.shape == b.shape else np.inf
