"""Dense vectors of passages beside infinity-emb, which runs in a venv and a process of its own."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
import pytest

from bench.core import measure
from bench.core.child import Stopwatch
from bench.core.harness import OURS, Bench, Row
from bench.core.measure import Absent, Sampled
from bench.core.progress import paced
from bench.core.workloads import encoder_work, mix, padding_ratio, texts, weight_bytes
from bench.peers.infinity import Infinity

BATCHES = (8, 32)  # 32 is its default; on a CPU smaller ones may suit it
NAME = "infinity-emb"


@pytest.mark.parametrize("layers", [2, 24])
def test_dense(bench: Bench, layers: int) -> None:
    """One call with passages, as a bulk job or a busy server has them."""
    bench.full_only(layers == 24)
    shape = bench.encoder_shape(layers)
    path = bench.checkpoint(shape)
    sizes = [mix("passages", bench.pick(8192, 300), seed) for seed in range(3)]
    lengths = sizes[0]
    inputs = [texts(n, seed) for seed, n in enumerate(sizes)]
    absent: dict[str, str] = {}
    peer: Infinity | None = None
    try:
        peer, batch = _best(bench, path, inputs[0])
    except Absent as reason:
        absent[NAME] = str(reason)
    except RuntimeError as error:
        absent[NAME] = f"failed: {str(error)[:120]}"
        if bench.scale.smoke:
            raise
    note = ""
    if peer:
        versions = ", ".join(f"{k} {v}" for k, v in peer.versions.items())
        note = f"in its own process, timed there without the pipe; batch size {batch}; {versions}"
    row = Row(
        f"encode dense, passages, beside {NAME}, {shape.layers} layers, fp32",
        shape=f"{shape}, {len(lengths)} texts of {min(lengths)} to {max(lengths)} tokens in a call",
        tokens=sum(lengths),
        padding=padding_ratio(lengths, batch) if peer else None,
        unit="tokens/s",
        note=note,
        work=encoder_work(shape, lengths, ("dense",)),
        moved=weight_bytes(shape, 4, ("dense",)),
        model=True,
    )
    found = _samples(bench, row, path, peer, inputs)
    bench.add(row, found, absent, {})


def _best(bench: Bench, path: Any, sample: list[str]) -> tuple[Infinity, int]:
    """Its engine with the batch size that suits it best in one call."""
    if bench.scale.smoke:
        return Infinity(path, BATCHES[0], bench.threads), BATCHES[0]
    trial: dict[int, float] = {}
    for batch in BATCHES:
        with closing(Infinity(path, batch, bench.threads)) as peer:
            for part in (sample[:2], sample):
                peer.encode(part)
            trial[batch] = peer.took
    batch = min(trial, key=trial.__getitem__)
    return Infinity(path, batch, bench.threads), batch


def _samples(
    bench: Bench, row: Row, path: Any, peer: Infinity | None, inputs: list[list[str]]
) -> dict[str, Sampled]:
    from m3fast import BGEM3FlagModel

    model = BGEM3FlagModel(str(path), use_fp16=False, devices="cpu")
    watch = Stopwatch()
    candidates: dict[str, measure.Candidate] = {OURS: model.encode}

    def theirs(texts: list[str], its: Infinity) -> Any:
        found = its.encode(texts)
        watch.took = its.took
        return found

    if peer:
        candidates[NAME] = partial(theirs, its=peer)
    try:
        return measure.interleave(
            candidates,
            inputs,
            rounds=min(4, bench.scale.rounds or 4),
            budget=bench.scale.budget,
            warm=inputs[0][:2],
            judge=_judge,
            say=paced(lambda line: bench.say(f"{row.name}: {line}")),
            watch=watch,
        )
    finally:
        if peer:
            peer.close()


def _judge(name: str, truth: Any, found: Any) -> str:
    a, b = truth["dense_vecs"], found["dense_vecs"]
    if a.shape != b.shape:
        return f"shape {list(b.shape)}, not {list(a.shape)}"
    gap = np.abs(a - b).max()
    return "" if gap <= 1e-4 else f"dense off by {gap:.2g}"
