"""Cost against text length and against corpus size, and the exponents fitted to both.

All sizes of a figure take turns in the same rounds: a round gives one estimate of an exponent, and
a machine that slows down for a minute does not bend the curve.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.core import measure
from bench.core.harness import GEMM_SHARE, OURS, Bench, Row, at_most
from bench.core.measure import Absent, Candidate, Sampled
from bench.core.progress import paced
from bench.core.workloads import TINY, encoder_work, texts, weight_bytes
from bench.cpu.candidates import STRONG
from bench.cpu.exponents import by_round
from bench.peers import encoders, encodings, strong_cpu

Encode = Callable[[list[str], int, int], Any]  # texts, most tokens of one, texts in a batch
Key = tuple[int, str]  # size, candidate

FLAG = "FlagEmbedding"
FITTED = range(16, 1025)  # lengths where attention is a small part of the work
# FlagEmbedding runs its first batch twice, so batches are small: in tokens, and of short texts.
BATCH_TOKENS, FLAG_BATCH = 1024, 64


def _encoders(bench: Bench, path: Path) -> tuple[dict[str, Encode], dict[str, str]]:
    """What is here, by name, and why the rest is not; the first is what the others must equal."""
    run: dict[str, Encode] = {}
    absent: dict[str, str] = {}
    for name, make in {FLAG: _flag_embedding, OURS: _m3fast}.items():
        try:
            # Ten seconds to import, unless another file's smoke test has done so.
            if bench.scale.smoke and name == FLAG and FLAG not in sys.modules:
                raise Absent("takes ten seconds")
            run[name] = make(path)
        except (Absent, ImportError) as error:
            if name == OURS:
                raise
            absent[name] = str(error)
    return run, absent


def _m3fast(path: Path) -> Encode:
    from m3fast import BGEM3FlagModel

    model = BGEM3FlagModel(str(path), use_fp16=False, devices="cpu")
    return lambda texts, longest, batch: model.encode(texts, max_length=longest, **encoders.ALL)


def _flag_embedding(path: Path) -> Encode:
    from FlagEmbedding import BGEM3FlagModel

    model = BGEM3FlagModel(str(path), use_fp16=False, devices="cpu")
    return lambda texts, longest, batch: model.encode(texts, batch, longest, **encoders.ALL)


def _weak(strong: strong_cpu.StrongCpu, tokens: int) -> dict[str, str]:
    """Why the strong baseline does not count, if so: its products are slow."""
    reached = strong.gemm_share(tokens)
    if reached >= GEMM_SHARE:
        return {}
    return {STRONG: f"its products reach {100 * reached:.0f} % of the gemm suite's rate"}


def _note(bench: Bench, batch: int) -> str:
    flag = f"FlagEmbedding in batches of {batch}"
    return flag if bench.scale.smoke else f"{flag}; {strong_cpu.note()}"


def _texts(count: int) -> str:
    return "one text" if count == 1 else f"{count:,} texts"


def _shuffled(lengths: list[int], seed: int) -> list[str]:
    return texts(np.random.default_rng(seed).permutation(lengths).tolist(), seed)


def _rounds(
    bench: Bench,
    title: str,
    candidates: Mapping[Key, Candidate],
    inputs: Sequence[Any],
    warm: Any,
    rounds: int,
) -> dict[Key, Sampled]:
    """`measure.interleave` over sizes and candidates; each size has a truth of its own."""
    names = {f"{peer}, {size:,}": (size, peer) for size, peer in candidates}
    truths: dict[int, tuple[str, Any]] = {}

    def judge(name: str, _: Any, found: Any) -> str:
        its, truth = truths.setdefault(names[name][0], (name, found))
        return "" if its == name else encodings.differ(1e-4)(name, truth, found)

    found = measure.interleave(
        {name: candidates[key] for name, key in names.items()},
        inputs,
        rounds=min(rounds, bench.scale.rounds or rounds),
        budget=bench.scale.budget,
        warm=warm,
        judge=judge,
        say=paced(lambda line: bench.say(f"{title}: {line}")),
    )
    return {key: found[name] for name, key in names.items()}


@pytest.mark.parametrize("layers", [2, 24])
def test_text_length(bench: Bench, layers: int) -> None:
    bench.full_only(layers == 24)
    shape = bench.encoder_shape(layers)
    path = bench.checkpoint(shape)
    tokens = bench.pick(4096, 64)
    lengths: list[int] = bench.pick([16, 64, 256, 1024, 4096, 8192], [16, 32])
    counts = {n: max(1, tokens // n) for n in lengths}
    batches = {n: max(1, BATCH_TOKENS // n) for n in lengths}
    long = bench.pick(4096 if bench.scale.name == "full" else 1024, 32)
    run, absent = _encoders(bench, path)
    if bench.scale.smoke:
        absent[STRONG] = "takes ten seconds to compile; bench_encode.py has it"
    else:
        strong = strong_cpu.StrongCpu(path, torch.float32, texts([256] * 8, 9))
        run[STRONG] = lambda texts, longest, batch: strong(texts)
    names = [(n, peer) for n in lengths for peer in run if n <= long or peer == OURS]
    found = _rounds(
        bench,
        f"scaling, {shape.layers} layers",
        {(n, peer): lambda x, n=n, peer=peer: run[peer](x[n], n, batches[n]) for n, peer in names},
        [{n: texts([n] * counts[n], seed) for n in lengths} for seed in range(3)],
        {n: texts([min(n, 16)], 9) for n in lengths},
        rounds=2,
    )
    weak = _weak(strong, tokens) if STRONG in run else {}
    for n in lengths:
        sizes = [n] * counts[n]
        bench.add(
            Row(
                f"scaling: throughput at {n} tokens, {shape.layers} layers, fp32",
                shape=f"{shape}, {_texts(counts[n])} of {n} tokens in a call, all outputs",
                tokens=sum(sizes),
                padding=1.0,
                unit="tokens/s",
                note=_note(bench, batches[n]) if n <= long else "",
                work=encoder_work(shape, sizes),
                moved=weight_bytes(shape, 4),
                model=True,
                length=n,
                batch=counts[n],
            ),
            {peer: its for (size, peer), its in found.items() if size == n},
            absent if n <= long else {},
            {},
            void=weak,
        )
    fitted = [n for n in lengths if n in FITTED]
    slopes = {
        peer: by_round({n: found[n, peer] for n in fitted}, counts)
        for peer in run
        if all((n, peer) in found for n in fitted)
    }
    bench.add(
        Row(
            f"scaling: exponent of a text's cost in its length, {shape.layers} layers, fp32",
            shape=f"{shape}, texts of {min(fitted)} to {max(fitted)} tokens, {tokens:,} in a call",
            unit="exponent",
            note="seconds of a call / its texts ~ length^exponent",
            model=True,
        ),
        slopes,
        absent,
        {},
        lambda theirs, ours: None,
        weak,
    )


def test_corpus_size(bench: Bench) -> None:
    path = bench.model or TINY
    counts: list[int] = bench.pick([250, 1000, 4000], [2, 4])
    run, absent = _encoders(bench, path)
    shape = bench.shape_of(path)
    # The same mix of lengths at every size, so that only the number of texts changes.
    sizes = {n: np.linspace(5, 40, n).round().astype(int).tolist() for n in counts}
    inputs = [{n: _shuffled(sizes[n], seed) for n in counts} for seed in range(3)]
    found = _rounds(
        bench,
        "scaling, corpus",
        {(n, p): lambda x, n=n, p=p: run[p](x[n], 40, FLAG_BATCH) for n in counts for p in run},
        inputs,
        {n: inputs[0][n][:2] for n in counts},
        rounds=5,
    )
    for n in counts:
        lengths = sizes[n]
        bench.add(
            Row(
                f"scaling: {n:,} short texts in one call, {shape}, fp32",
                shape=f"{shape}, {len(lengths):,} texts of 5 to 40 tokens, all outputs",
                tokens=sum(lengths),
                unit="tokens/s",
                note=f"FlagEmbedding in batches of {FLAG_BATCH}" if FLAG in run else "",
                work=encoder_work(shape, lengths),
                moved=weight_bytes(shape, 4),
                model=True,
                corpus=n,
            ),
            {peer: its for (size, peer), its in found.items() if size == n},
            absent,
            {},
        )
    bench.add(
        Row(
            f"scaling: exponent of a call's cost in its number of texts, {shape}, fp32",
            shape=f"{shape}, {min(counts):,} to {max(counts):,} texts of 5 to 40 tokens in a call",
            unit="exponent",
            note="seconds of a call ~ texts^exponent",
            model=True,
        ),
        {
            peer: by_round({n: found[n, peer] for n in counts}, dict.fromkeys(counts, 1.0))
            for peer in run
        },
        absent,
        {} if bench.scale.smoke else {OURS: at_most(1.05, "")},
        lambda theirs, ours: None,
    )
