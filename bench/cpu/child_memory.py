"""`python -m bench.cpu.child_memory WAY COUNT THREADS [PATH]` -> JSON, in a process of its own."""

from __future__ import annotations

import gc
import json
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

WORDS = ("the", "a", "water", "stone", "light", "river", "night", "moon", "house", "bread", "road")
ALL = {"return_dense": True, "return_sparse": True, "return_colbert_vecs": True}


def texts(count: int, seed: int = 0) -> Iterator[str]:
    """Short random texts one at a time, so that the corpus itself takes no memory."""
    rng = random.Random(seed)
    return (" ".join(rng.choices(WORDS, k=rng.randint(5, 12))) for _ in range(count))


def status(field: str) -> float:
    """MiB of a line of /proc/self/status: VmRSS, VmHWM or RssFile.

    Not getrusage: its peak is inherited from the parent across fork and exec.
    """
    lines = Path("/proc/self/status").read_text().split(f"{field}:")
    if len(lines) < 2:
        sys.exit(f"absent: {field} in /proc/self/status")
    return int(lines[1].split()[0]) / 1024


def corpus(way: str, count: int) -> dict[str, float]:
    """Peak of a whole process that encodes `count` texts, streamed."""
    if way == "encode_iter":
        from m3fast import Engine

        engine = Engine.from_pretrained("m3fast-tiny")
        done = sum(len(part) for part in engine.encode_iter(texts(count), show_progress=False))
    else:
        from m3fast.cli import main as cli

        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "in.txt"
            with source.open("w") as out:
                out.writelines(f"{text}\n" for text in texts(count))
            cli(["encode", str(source), "-o", str(Path(folder) / "out.npz")])
            done = count if (Path(folder) / "out.npz").exists() else 0
    if done != count:
        sys.exit(f"{way}: {count} texts expected, {done} came out")
    return {"MiB": status("VmHWM")}


def growth(calls: int, path: str) -> dict[str, Any]:
    """What `calls` calls with ever new texts leave behind, after a third as many to warm up."""
    from m3fast import BGEM3FlagModel

    model = BGEM3FlagModel(path, use_fp16=False, devices="cpu")

    def resident(first: int, last: int) -> float:
        for i in range(first, last):
            batch = list(texts(1 + i % 16, seed=i))
            found = model.encode(batch, **ALL)
            if len(found["colbert_vecs"]) != len(batch):
                sys.exit(f"{len(batch)} texts expected, {len(found['colbert_vecs'])} came out")
        del found
        gc.collect()
        return status("VmRSS")

    warm = max(1, calls // 3)
    before = resident(0, warm)
    return {"MiB": resident(warm, warm + calls) - before, "before": before}


def load(package: str, path: str) -> dict[str, Any]:
    """Peak of a load and one query above what the imports left, and the query's dense vector."""
    try:
        make = LOADS[package]()
    except ImportError as error:
        sys.exit(f"absent: {error}")
    gc.collect()
    imported = status("VmRSS")
    encode = make(path)
    dense = encode(next(texts(1)))["dense_vecs"]
    if dense.ndim != 1:
        sys.exit(f"one vector expected, found shape {dense.shape}")
    peak = status("VmHWM")
    memory = {"peak": peak, "imported": imported, "after": status("VmRSS")}
    return {"MiB": peak - imported, **memory, "dense": dense.tolist()}


Encode = Callable[[str], dict[str, Any]]


def _m3fast() -> Callable[[str], Encode]:
    from m3fast import BGEM3FlagModel

    def make(path: str) -> Encode:
        model = BGEM3FlagModel(path, use_fp16=False, devices="cpu")
        return lambda text: model.encode(text, **ALL)

    return make


def _m3fast_int8() -> Callable[[str], Encode]:
    from bench.peers import encoders
    from m3fast import Engine  # noqa: F401 - what the adapter imports is no part of a load

    return lambda path: encoders.m3fast_int8(Path(path))


def _flag_embedding() -> Callable[[str], Encode]:
    from FlagEmbedding import BGEM3FlagModel

    def make(path: str) -> Encode:
        model = BGEM3FlagModel(path, use_fp16=False, devices="cpu")
        return lambda text: model.encode(text, **ALL)

    return make


def _onnx_runtime_int8() -> Callable[[str], Encode]:
    """Its graph has been made before."""
    import onnx  # noqa: F401 - it and the next are asked for a graph that is there
    import onnxruntime.quantization  # noqa: F401

    from bench.peers import encoders

    threads = torch.get_num_threads()
    return lambda path: encoders.onnx_runtime(Path(path), threads, int8=True)


# Each imports what it needs, and returns what loads a checkpoint.
LOADS: dict[str, Callable[[], Callable[[str], Encode]]] = {
    "m3fast": _m3fast,
    "m3fast, int8": _m3fast_int8,
    "FlagEmbedding": _flag_embedding,
    "ONNX Runtime, int8": _onnx_runtime_int8,
}


def main(way: str, count: int, path: str) -> None:
    if way == "growth":
        found = growth(count, path)
    elif way in LOADS:
        found = load(way, path)
    else:
        found = corpus(way, count)
    print(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    main(sys.argv[1], int(sys.argv[2]), "".join(sys.argv[4:5]))
