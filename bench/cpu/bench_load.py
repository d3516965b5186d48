"""Time to first embedding: from the start of a process to the first result of one query.

Each sample is a fresh interpreter. The checkpoint and the packages are in the page cache.
"""

from __future__ import annotations

import importlib.util
import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest

from bench.core import child, measure, record
from bench.core.dtypes import NAMES
from bench.core.harness import OURS, Bench, Row
from bench.core.measure import Candidate
from bench.core.progress import paced
from bench.core.workloads import CACHE, TINY, quantized, texts
from bench.peers import eightbit, encodings, infinity, onnxgraph

PACKAGES = {
    "FlagEmbedding": "FlagEmbedding",
    OURS: "m3fast",
    "ONNX Runtime": "onnxruntime",
    "sentence-transformers": "sentence_transformers",
}
SLOW = ("FlagEmbedding", "sentence-transformers")  # ten seconds each
STEPS = ("interpreter", "import", "load", "first encode")


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
@pytest.mark.parametrize("size", ["m3fast-tiny", 2, 24])
def test_first_embedding(bench: Bench, size: str | int, dtype: str) -> None:
    bench.full_only(size == 24)
    tiny = size == "m3fast-tiny"
    if (bench.model and tiny) or (bench.scale.smoke and not (tiny and dtype == "fp32")):
        pytest.skip("--model is measured once" if bench.model else "seconds for nothing new")
    path = TINY if tiny else bench.checkpoint(bench.encoder_shape(int(size)))
    shape = bench.shape_of(path)
    name = f"{'m3fast-tiny' if tiny else f'{shape.layers} layers'}, {dtype}"
    int8 = dtype == "int8"
    row = Row(
        f"time to first embedding, {name}",
        shape=f"{shape}, one query of 20 tokens, from process start, files in the page cache",
        dtype=NAMES[dtype],
        model=not tiny,
    )
    lacks = record.lacks(dtype)
    bench.need(row, not lacks, lacks)
    cosines = encodings.Cosines("FlagEmbedding") if int8 else None
    absent = {
        peer: f"No module named '{package}'"
        for peer, package in PACKAGES.items()
        if importlib.util.find_spec(package) is None
    }
    # On m3fast-tiny both spend their time on imports, and one of them shows that.
    left_out = SLOW if bench.scale.smoke else SLOW[1:] if tiny or int8 else ()
    if bench.scale.smoke:
        absent |= {peer: "takes ten seconds" for peer in left_out if peer not in absent}
    steps: dict[str, list[list[float]]] = {}
    watch = child.Stopwatch()
    candidates: dict[str, Candidate] = {
        peer: partial(_first, peer, dtype, _model(peer, path, int8), bench.threads, watch, steps)
        for peer in PACKAGES
        if peer not in absent and peer not in left_out
    }
    child.WARMED.read(path)
    found = measure.interleave(
        candidates,
        [texts([20], seed)[0] for seed in range(8)],
        rounds=min(6, bench.scale.rounds or 6),
        budget=min(8.0, bench.scale.budget),
        least=1,
        warm="",
        judge=cosines or _judge,
        judged=8 if cosines else 1,
        say=paced(lambda line: bench.say(f"time to first embedding, {name}: {line}")),
        watch=watch,
    )
    if cosines:
        for peer, its in found.items():
            its.cosine = cosines.of(peer)
    split = "; ".join(
        f"{peer} {' / '.join(f'{median(s):.2g}' for s in zip(*each, strict=True))} s"
        for peer, each in steps.items()
    )
    more = "" if tiny or int8 else "; sentence-transformers: dense only"
    more += "; ONNX Runtime: graph made before" * (int8 or not tiny)
    more += "; m3fast: a folder of `m3fast quantize`; FlagEmbedding: fp32" * int8
    bench.add(replace(row, note=f"{' / '.join(STEPS)}: {split}{more}"), found, absent, {})


def _model(peer: str, path: Path, int8: bool) -> Path:
    """What the peer loads: the checkpoint, a graph made of it, a folder with its settings."""
    if peer == "sentence-transformers":
        return infinity.folder(path)
    if peer == "ONNX Runtime":
        # Written beside the weights, which only the cache is for.
        graph = onnxgraph.export(
            path if path.parent == CACHE else infinity.folder(path), fused=True
        )
        return eightbit.onnx_runtime(graph) if int8 else graph
    return quantized(path) if int8 and peer == OURS else path


def _first(
    peer: str,
    dtype: str,
    model: Path,
    threads: int,
    watch: child.Stopwatch,
    steps: dict[str, list[list[float]]],
    text: str,
) -> dict[str, Any]:
    """The first result; `watch.took` is how long it took from the start of the process."""
    way = f"{peer}, int8" if (peer, dtype) == (OURS, "int8") else peer
    if not text and not child.WARMED.first(way):
        return {}
    start = time.monotonic()
    said = child.run(
        "bench.cpu.child_load", way, str(model), str(threads), text or "warm", threads=threads
    )
    answer = json.loads(said)
    instants = [start, *answer["instants"]]
    watch.took = instants[-1] - start
    if text:
        steps.setdefault(peer, []).append(np.diff(instants).tolist())
    arrays = {name: child.unpack(packed) for name, packed in answer["arrays"].items()}
    return arrays | {"lexical_weights": answer["lexical_weights"]}


def _judge(name: str, truth: dict[str, Any], found: dict[str, Any]) -> str:
    if name == "sentence-transformers":  # has dense vectors only
        found = truth | {"dense_vecs": found["dense_vecs"]}
    return encodings.differ(1e-4)(name, truth, found)
