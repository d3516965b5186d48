"""Latency of one query or a few on a CPU: text to numpy, all three outputs."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from functools import cache

import pytest

from bench.core import child, record
from bench.core.dtypes import DTYPES, NAMES, TOLERANCE
from bench.core.harness import OURS, Bench, Row, times
from bench.core.measure import P99_SAMPLES, Absent, Sampled
from bench.core.workloads import Shape, encoder_work, queries, texts, weight_bytes
from bench.cpu import candidates
from bench.cpu.candidates import Peers
from bench.peers import encoders, encodings

QUERY = 20  # tokens
PROBE = "FlagEmbedding runs the forward pass twice, first as a probe for memory"
BATCHES = (1, 2, 4, 8, 16, 32)
LATER = "m3fast, 20th query"


@pytest.fixture(autouse=True)
def _memory(bench: Bench) -> Iterator[None]:
    yield
    if not bench.scale.smoke:
        gc.collect()


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("layers", [2, 24])
def test_query(bench: Bench, layers: int, batch: int, dtype: str) -> None:
    bench.full_only(layers == 24)
    if layers == 24 and batch > 1:
        pytest.skip("with 24 layers one query only")
    shape = bench.encoder_shape(layers)
    row = _row(shape, f"{queries(batch, QUERY)}, {shape.layers} layers", batch, dtype)
    lacks = record.lacks(dtype)
    bench.need(row, not lacks, lacks)
    inputs = [texts([QUERY] * batch, seed) for seed in range(16)]
    its = Peers(bench, bench.checkpoint(shape), dtype, inputs[0], tuned=False)
    bench.compare(
        row,
        its.makers,
        [text for (text,) in inputs] if batch == 1 else inputs,
        rounds=P99_SAMPLES,
        aims={"FlagEmbedding": times(3)} if (batch, dtype) == (1, "fp32") else {},
        **its.judges,
    )


def test_batches(bench: Bench) -> None:
    """Cost against batch: the same models, a few rounds of each size."""
    shape = bench.encoder_shape()
    sample = texts([QUERY] * 8, 99)
    its = Peers(bench, bench.checkpoint(shape), "fp32", sample, tuned=False)
    makers = {name: cache(make) for name, make in its.makers.items()}
    for batch in bench.pick(BATCHES, (2,)):
        bench.compare(
            _row(shape, f"batch of {queries(batch, QUERY)}, {shape.layers} layers", batch, "fp32"),
            makers,
            [texts([QUERY] * batch, seed) for seed in range(8)],
            rounds=15,
            **its.judges,
        )


def test_first_query(bench: Bench) -> None:
    """The first call after loading, each in a fresh process, beside a later one of m3fast."""
    if bench.scale.smoke and bench.model:
        pytest.skip("seconds for nothing new")
    shape = bench.encoder_shape()
    path = bench.checkpoint(shape)
    found: dict[str, Sampled] = {}
    absent: dict[str, str] = {}
    truth = None
    names = bench.pick(("FlagEmbedding", OURS, "ONNX Runtime", "OpenVINO"), (OURS,))
    judge = encodings.differ(TOLERANCE["fp32"])
    for seed in range(min(3, bench.scale.rounds or 3)):
        for name in names:
            if name in absent or (name in found and found[name].wrong):
                continue
            its = found.setdefault(name, Sampled())
            try:
                said = _first(name, str(path), bench.threads, texts([QUERY], seed)[0])
            except Absent as reason:
                absent[name] = str(reason)
                del found[name]
                continue
            except RuntimeError as error:
                its.wrong = f"failed: {error}"
                continue
            if name == names[0] or truth is None:
                truth = said["result"]
            its.wrong = judge(name, truth, said["result"])
            its.seconds.append(said["first"])
            if name == OURS:
                found.setdefault(LATER, Sampled()).seconds.append(said["later"])
        truth = None
        bench.say(f"first query after loading: process {seed + 1} of each")
    for its in found.values():
        if its.wrong:
            its.seconds = []
    bench.add(_row(shape, f"first query after loading, {shape.layers} layers", 1, "fp32"),
              found, absent, {})  # fmt: skip


def first_query(name: str, path: str, threads: int, text: str) -> None:
    """In a process of its own: print the first call's seconds, the 20th's, and the result."""
    import time

    import numpy as np
    import torch

    torch.set_num_threads(threads)
    makers = {
        "FlagEmbedding": lambda: encoders.flag_embedding(encoders.Path(path)),
        OURS: lambda: encoders.m3fast(encoders.Path(path)),
        "ONNX Runtime": lambda: encoders.onnx_runtime(encoders.Path(path), threads),
        "OpenVINO": lambda: encoders.openvino(encoders.Path(path), threads),
    }
    try:
        encode = makers[name]()
    except ImportError as error:
        raise SystemExit(f"absent: {error}") from error
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        result = encode(text)
        seconds.append(time.perf_counter() - start)
    arrays = {k: child.pack(np.asarray(result[k])) for k in ("dense_vecs", "colbert_vecs")}
    weights = {k: float(v) for k, v in result["lexical_weights"].items()}
    said = {"first": seconds[0], "later": seconds[-1], "arrays": arrays, "weights": weights}
    print(json.dumps(said))


def _first(name: str, path: str, threads: int, text: str) -> dict:
    code = (
        "import sys; from bench.cpu.bench_latency import first_query; "
        "first_query(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])"
    )
    shown = child.python("-c", code, name, path, str(threads), text, threads=threads)
    said = json.loads(shown.strip().splitlines()[-1])
    arrays = {k: child.unpack(packed) for k, packed in said["arrays"].items()}
    return said | {"result": arrays | {"lexical_weights": said["weights"]}}


def _row(shape: Shape, name: str, batch: int, dtype: str) -> Row:
    return Row(
        f"{name}, {dtype}",
        shape=f"{shape}, " + ("a str in, three arrays out" if batch == 1 else "one call"),
        dtype=NAMES[dtype],
        tokens=QUERY * batch,
        work=encoder_work(shape, [QUERY] * batch),
        moved=weight_bytes(shape, DTYPES[dtype].itemsize),
        model=True,
        length=QUERY,
        batch=batch,
        note=candidates.note(dtype, PROBE),
    )
