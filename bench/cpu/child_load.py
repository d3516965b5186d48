"""Run in a process of its own: `python -m bench.cpu.child_load WAY PATH THREADS TEXT` -> JSON.

Says at which instant of the system's monotonic clock, the parent's too, each step was over.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

# No import of numpy, torch or bench.core.child up here: each way pays for what it needs.
Steps = Iterator[Any]
ALL = {"return_dense": True, "return_sparse": True, "return_colbert_vecs": True}


def m3fast(path: str, threads: int, text: str) -> Steps:
    from m3fast import BGEM3FlagModel

    yield
    model = BGEM3FlagModel(path, use_fp16=False, devices="cpu")
    yield
    yield model.encode(text, **ALL)


def m3fast_int8(path: str, threads: int, text: str) -> Steps:
    from m3fast import Engine

    yield
    engine = Engine.from_pretrained(path, device="cpu", dtype="int8")
    yield
    found = engine.encode(text, dense=True, sparse=True, colbert=True)
    assert found.dense is not None and found.sparse is not None and found.colbert is not None
    yield {
        "dense_vecs": found.dense[0],
        "lexical_weights": found.sparse.to_dicts()[0],
        "colbert_vecs": found.colbert[0],
    }


def flag_embedding(path: str, threads: int, text: str) -> Steps:
    from FlagEmbedding import BGEM3FlagModel

    yield
    model = BGEM3FlagModel(path, use_fp16=False, devices="cpu")
    yield
    yield model.encode(text, **ALL)


def sentence_transformers(path: str, threads: int, text: str) -> Steps:
    from sentence_transformers import SentenceTransformer

    yield
    model = SentenceTransformer(path, device="cpu", model_kwargs={"dtype": "float32"})
    yield
    yield {"dense_vecs": model.encode(text, show_progress_bar=False)}


def onnx_runtime(path: str, threads: int, text: str) -> Steps:
    """PATH is the graph, beside it lies `tokenizer.json`."""
    from pathlib import Path

    import numpy as np
    import onnxruntime
    from tokenizers import Tokenizer

    yield
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(Path(path).with_name("tokenizer.json")))
    tokenizer.no_padding()
    yield
    ids = tokenizer.encode(text).ids
    feeds = {"ids": np.array([ids]), "mask": np.ones((1, len(ids)), np.float32)}
    dense, weights, tokens = session.run(None, feeds)
    best: dict[str, float] = {}
    for i, w in zip(ids, weights[0].tolist(), strict=True):
        if i > 3 and w > best.get(str(i), 0):
            best[str(i)] = w
    yield {"dense_vecs": dense[0], "lexical_weights": best, "colbert_vecs": tokens[0]}


WAYS = {
    "m3fast": m3fast,
    "m3fast, int8": m3fast_int8,
    "FlagEmbedding": flag_embedding,
    "sentence-transformers": sentence_transformers,
    "ONNX Runtime": onnx_runtime,
}


def main(way: str, path: str, threads: int, text: str) -> None:
    instants = [time.monotonic()]
    found: Any = None
    try:
        for result in WAYS[way](path, threads, text):
            found = result
            instants.append(time.monotonic())
    except ImportError as error:
        sys.exit(f"absent: {error}")
    from bench.core.child import pack

    lexical = found.get("lexical_weights", {})
    arrays = {k: pack(v) for k, v in found.items() if k != "lexical_weights"}
    weights = {str(k): float(v) for k, v in lexical.items()}
    print(json.dumps({"instants": instants, "arrays": arrays, "lexical_weights": weights}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
