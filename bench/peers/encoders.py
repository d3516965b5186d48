"""One small adapter per peer: a maker returns a function from texts (or arrays) to results.

A maker raises ImportError or Absent where its peer is not installed; the row then says so.
Adapters of encoders return FlagEmbedding's dict of dense_vecs, lexical_weights, colbert_vecs, or
those of them that were asked for. A `sample` is what an adapter tries its batch sizes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.core import measure, record
from bench.core.measure import Absent
from bench.core.workloads import OUTPUTS
from bench.peers import eightbit, onnxgraph
from bench.peers.encodings import KEYS, Encoded

Encoder = Callable[[Any], Encoded]  # of a list of texts, or of one str
ALL = {"return_dense": True, "return_sparse": True, "return_colbert_vecs": True}
# Texts per padded batch, tried out for each workload; FlagEmbedding's own default is 256.
BATCHES, FLAG_BATCHES = (1, 4, 8, 16), (4, 16)
ONNX_BF16 = "its CPU kernels have no bf16"
FLAG_BF16 = "FlagEmbedding computes in fp32 on a CPU"


def flags(outputs: Sequence[str]) -> dict[str, bool]:
    """FlagEmbedding's arguments that ask for these outputs."""
    return {flag: name in outputs for flag, name in zip(ALL, OUTPUTS, strict=True)}


def m3fast(path: Path, bf16: bool = False, outputs: Sequence[str] = OUTPUTS) -> Encoder:
    from m3fast import BGEM3FlagModel

    model = BGEM3FlagModel(str(path), use_fp16=False, use_bf16=bf16, devices="cpu")
    longest = _longest(path)
    return lambda texts: model.encode(texts, max_length=longest, **flags(outputs))


def m3fast_int8(path: Path, outputs: Sequence[str] = OUTPUTS) -> Encoder:
    """By `Engine`, and into the dict that the rows of other dtypes get from `BGEM3FlagModel`."""
    from m3fast import Engine

    engine = Engine.from_pretrained(str(path), device="cpu", dtype="int8")
    names = [str(i) for i in range(engine.config.vocab_size)]
    wanted: dict[str, Any] = {name: name in outputs for name in OUTPUTS}
    longest = _longest(path)

    def encode(texts: str | list[str]) -> Encoded:
        found = engine.encode(texts, max_length=longest, show_progress=False, **wanted)
        encoded: Encoded = {}
        if found.dense is not None:
            encoded[KEYS["dense"]] = found.dense
        if found.sparse is not None:
            rows = found.sparse.to_dicts()
            encoded[KEYS["sparse"]] = [{names[i]: w for i, w in row.items()} for row in rows]
        if found.colbert is not None:
            encoded[KEYS["colbert"]] = list(found.colbert)
        if isinstance(texts, str):
            return {key: rows[0] for key, rows in encoded.items()}
        return encoded

    return encode


def flag_embedding(
    path: Path, sample: Sequence[str] = (), outputs: Sequence[str] = OUTPUTS
) -> Encoder:
    """In fp32: on a CPU it has nothing else.

    Args:
        sample: texts to choose the batch size by; its default of 256 without.
    """
    from FlagEmbedding import BGEM3FlagModel

    model = BGEM3FlagModel(str(path), use_fp16=False, devices="cpu", batch_size=256)
    longest = _longest(path)  # it would cut at 512

    def encode(texts: Any, size: int) -> Encoded:
        return model.encode(texts, batch_size=size, max_length=longest, **flags(outputs))

    return _tuned(("FlagEmbedding", path), encode, FLAG_BATCHES if sample else (256,), sample)


def sentence_transformers(path: Path, bf16: bool, sample: Sequence[str] = ()) -> Encoder:
    """Dense vectors, all that it has of such a checkpoint: SDPA over padded batches.

    Its unpadded path needs flash-attention, which needs a GPU.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    dtype = torch.bfloat16 if bf16 else torch.float32
    kwargs = {"dtype": dtype, "attn_implementation": "sdpa"}
    part = Transformer(str(path), model_kwargs=kwargs, max_seq_length=_longest(path))
    pooling = Pooling(part.get_embedding_dimension(), pooling_mode="cls")
    model = SentenceTransformer(modules=[part, pooling, Normalize()], device="cpu")

    def encode(texts: Any, size: int) -> Encoded:
        vectors = model.encode(
            texts, batch_size=size, convert_to_numpy=True, show_progress_bar=False
        )
        return {"dense_vecs": vectors.astype(np.float32, copy=False)}

    return _tuned(("sentence-transformers", path, bf16), encode, (8, 32), sample)


def onnx_runtime(
    path: Path, threads: int, sample: Sequence[str] = (), outputs: Sequence[str] = OUTPUTS,
    int8: bool = False,
) -> Encoder:  # fmt: skip
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Its threads would spin on into the next candidate's turn.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    model = onnxgraph.export(path, fused=True, outputs=outputs)
    if int8:
        model = eightbit.onnx_runtime(model)
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

    def run(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(outputs, session.run(list(outputs), feeds), strict=True))

    return _padded(path, ("ONNX Runtime", path, int8, *outputs), run, sample)


def openvino(
    path: Path, threads: int, sample: Sequence[str] = (), dtype: str = "fp32",
    outputs: Sequence[str] = OUTPUTS, weights_only: bool = False,
) -> Encoder:  # fmt: skip
    """
    Args:
        weights_only: of int8: the products are of fp32 or bf16, by weights kept in int8.
    """
    import openvino

    # Of int8 what is not quantised is computed as OpenVINO would by itself: in bf16 where it can.
    bf16 = dtype == "bf16" or (dtype == "int8" and record.has_bf16())
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
        "PERFORMANCE_HINT": "LATENCY",
        # Pinning would bind the thread that every other candidate runs on.
        "ENABLE_CPU_PINNING": False,
    }
    graph = onnxgraph.export(path, fused=False, outputs=outputs)
    if dtype == "int8" and weights_only:
        graph = eightbit.openvino_weights(graph)
        settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0  # else its activations would be int8 too
    elif dtype == "int8":
        rows = rows_of(path)(eightbit.calibration_texts())
        graph = eightbit.openvino(graph, [given for _, given in batches(rows, BATCHES[-2])])
    model = openvino.Core().compile_model(graph, "CPU", settings)

    def run(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = model(feeds)
        return {name: found[name] for name in outputs}

    return _padded(path, ("OpenVINO", path, dtype, weights_only, *outputs), run, sample)


def no_bf16(path: Path) -> Encoder:
    raise Absent(ONNX_BF16)


def _longest(path: Path) -> int:
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    return config["max_position_embeddings"] - 2


def rows_of(path: Path) -> Callable[[list[str]], list[list[int]]]:
    """Token ids of texts, by the tokenizers package."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.enable_truncation(_longest(path))
    tokenizer.no_padding()
    return lambda texts: [e.ids for e in tokenizer.encode_batch(texts)]


_CHOSEN: dict[Any, int] = {}


def _tuned(
    key: Any, encode: Callable[[Any, int], Encoded], sizes: Sequence[int], sample: Sequence[str]
) -> Encoder:
    """The encoder at the batch size that is fastest for `sample`; the first one without."""
    if sample and len(sizes) > 1:
        key = (key, tuple(sizes), tuple(len(text) for text in sample))
        if key not in _CHOSEN:
            # A batch of more texts than there are is the first that holds them all.
            enough = next((n for n in sizes if n >= len(sample)), sizes[-1])
            tried = {str(n): partial(encode, size=n) for n in sizes if n <= enough}
            first = next(iter(tried))
            if len(tried) > 1:
                first = measure.fastest(tried, list(sample), list(sample[:2]))
            _CHOSEN[key] = int(first)
        size = _CHOSEN[key]
    else:
        size = sizes[0]
    return lambda texts: encode(texts, size)


def _padded(
    path: Path,
    key: Any,
    run: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]],
    sample: Sequence[str],
) -> Encoder:
    """Texts sorted by length, padded batch by batch, run, and unpadded again."""
    tokenize = rows_of(path)

    def encode(texts: str | list[str], size: int) -> Encoded:
        if isinstance(texts, str):
            return {k: rows[0] for k, rows in encode([texts], size).items()}
        rows = tokenize(texts)
        found: dict[str, list[Any]] = {}
        for chunk, given in batches(rows, size):
            for name, values in run(given).items():
                its = found.setdefault(name, [None] * len(rows))
                for row, i in enumerate(chunk):
                    n = len(rows[i])
                    if name == "dense":
                        its[i] = values[row]
                    elif name == "sparse":
                        its[i] = lexical(rows[i], values[row, :n])
                    else:
                        its[i] = values[row, : n - 1].copy()
        if "dense" in found:
            found["dense"] = np.stack(found["dense"])
        return {KEYS[name]: values for name, values in found.items()}

    # Without a trial a small batch, in which a smoke test's texts are padded.
    return _tuned(key, encode, BATCHES if sample else BATCHES[1:], sample)


def batches(rows: list[list[int]], size: int) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
    """Which rows of token ids, long ones first, and the graph's inputs for them, padded."""
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    for start in range(0, len(order), size):
        chunk = order[start : start + size]
        ids = np.ones((len(chunk), len(rows[chunk[0]])), np.int64)
        for row, i in zip(ids, chunk, strict=True):
            row[: len(rows[i])] = rows[i]
        yield chunk, {"ids": ids, "mask": (ids != 1).astype(np.float32)}


def lexical(ids: list[int], weights: np.ndarray) -> dict[str, Any]:
    """Each token's largest weight, special tokens (0 to 3) and zeros left out."""
    best: dict[int, Any] = {}
    for i, w in zip(ids, weights.tolist(), strict=True):
        if i > 3 and w > best.get(i, 0):
            best[i] = w
    return {str(i): w for i, w in best.items()}
