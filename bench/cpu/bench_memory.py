"""Memory of a process: its peak over a growing corpus and at a load, its growth over many calls."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bench.core import child, record
from bench.core.dtypes import NAMES
from bench.core.harness import OURS, Bench, Row, at_most
from bench.core.measure import Absent, Sampled
from bench.core.workloads import TINY, quantized
from bench.peers import eightbit, encodings, onnxgraph


@pytest.mark.parametrize("way", ["encode_iter", "cli"])
def test_peak_memory(bench: Bench, way: str) -> None:
    small, large = bench.pick((10_000, 100_000), (20, 100))
    row = Row(
        f"peak memory of {way}, {large:,} short texts",
        shape=f"m3fast-tiny, all outputs, texts of 5 to 12 words, one process each; "
        f"the peer is the same with {small:,} texts",
        unit="MiB",
    )
    here = way != "cli" or importlib.util.find_spec("m3fast.cli") is not None
    bench.need(row, here, "awaits m3fast.cli")
    counts = bench.pick((small, large), (small,))
    peaks = [
        json.loads(child.run("bench.cpu.child_memory", way, str(count), str(bench.threads)))["MiB"]
        for count in counts
    ]
    peer = f"{small:,} texts"
    found = {OURS: Sampled([peaks[-1]]), peer: Sampled([peaks[0]])}
    bench.add(row, found, {}, {peer: at_most(1.2, "×")}, lambda theirs, ours: ours[0] / theirs[0])


def test_growth(bench: Bench) -> None:
    """Nothing that a call leaves behind may add up."""
    calls = bench.pick(600, 6)
    path = bench.model or TINY
    found = _child(bench, "growth", calls, str(path))
    bench.add(
        Row(
            f"growth of memory over {calls:,} calls",
            shape=f"{bench.shape_of(path)}, calls of 1 to 16 short texts, all outputs",
            unit="MiB",
            note=f"resident memory after as many calls less that after the first {calls // 3:,}, "
            f"which was {found['before']:.0f} MiB",
            model=True,
        ),
        {OURS: Sampled([found["MiB"]])},
        {},
        {} if bench.scale.smoke else {OURS: at_most(2, " MiB")},
    )


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
@pytest.mark.parametrize("layers", [2, 24])
def test_load(bench: Bench, layers: int, dtype: str) -> None:
    """Peak of a load beside the checkpoint's size: a copy too many shows."""
    int8 = dtype == "int8"
    if int8 and bench.scale.smoke:
        pytest.skip("seconds for nothing new")
    bench.full_only(layers == 24)
    shape = bench.encoder_shape(layers)
    path = bench.checkpoint(shape)
    size = sum(f.stat().st_size for f in path.glob("*") if f.suffix in (".safetensors", ".pt"))
    row = Row(
        f"peak memory of a load, {shape.layers} layers, {dtype}",
        shape=f"{shape}, a load and one query, a process each",
        dtype=NAMES[dtype],
        unit="MiB",
        model=True,
    )
    lacks = record.lacks(dtype)
    bench.need(row, not lacks, lacks)
    absent = {"FlagEmbedding": "takes ten seconds"} if bench.scale.smoke else {}
    found: dict[str, dict[str, Any]] = {}
    for name in ("FlagEmbedding", OURS, *["ONNX Runtime"] * int8):
        way = f"{name}, int8" if int8 and name != "FlagEmbedding" else name
        try:
            if name not in absent:
                if name == "ONNX Runtime":  # not in the process whose memory counts
                    eightbit.onnx_runtime(onnxgraph.export(path, fused=True))
                model = quantized(path) if int8 and name == OURS else path
                found[name] = _child(bench, way, 0, str(model))
        except (Absent, ImportError) as reason:
            absent[name] = str(reason)
    samples = {name: Sampled([its["MiB"]]) for name, its in found.items()}
    if int8 and "FlagEmbedding" in found:
        its = encodings.Cosines("FlagEmbedding", ("dense",))
        vectors = {name: {"dense_vecs": np.array(said["dense"])} for name, said in found.items()}
        for name, vector in vectors.items():
            samples[name].wrong = its(name, vectors["FlagEmbedding"], vector)
            samples[name].cosine = its.of(name)
    weights = size / (1 << 20)
    whole = ", ".join(f"{name} {its['peak']:.0f} MiB" for name, its in found.items())
    note = (
        f"above what the imports left; weights in files: {weights:.0f} MiB; "
        f"peak of the whole process: {whole}" + "; FlagEmbedding: fp32" * int8
    )
    bench.add(replace(row, note=note), samples, absent, {})


def _child(bench: Bench, way: str, count: int, path: str) -> dict[str, Any]:
    return json.loads(
        child.run("bench.cpu.child_memory", way, str(count), str(bench.threads), path)
    )
