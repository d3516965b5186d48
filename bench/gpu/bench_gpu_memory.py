"""GPU memory beside the weights: the peak of a large batch and of a call, and growth over many."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from bench.core.harness import OURS, Bench, Row, at_most, times
from bench.core.measure import Absent, Sampled
from bench.core.workloads import mix, texts
from bench.gpu import candidates
from bench.gpu.candidates import TOKENS


def _allocated(bench: Bench) -> int:
    """Bytes of torch's allocator; 0 on a CPU, where these rows are smoke tests."""
    if bench.device.type != "cuda":
        return 0
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated(bench.device)


def _peak(bench: Bench, before: int, work: Callable[[], Any]) -> float:
    """MiB of the allocator's peak in `work` above `before`."""
    if bench.device.type != "cuda":
        work()
        return 0.0
    torch.cuda.reset_peak_memory_stats(bench.device)
    work()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated(bench.device) - before) / 2**20


def _row(bench: Bench, name: str, shape: Any, note: str, tokens: int) -> Row:
    return Row(
        f"{name}, {shape.layers} layers, bf16",
        shape=f"{shape}, passages, all three outputs",
        dtype=bench.pick("bfloat16", "float16"),
        tokens=tokens,
        unit="MiB",
        model=True,
        note=note,
    )


def test_batch(bench: Bench) -> None:
    shape, tokens = candidates.encoder_shape(bench), bench.pick(TOKENS, 15)
    config, weights = candidates.model(bench, shape)
    before = _allocated(bench)
    runner = candidates.runner(bench, config, weights)
    lengths = mix("passages", tokens, 0, bench.pick(512, 9))
    batch = candidates.batch(config, lengths, bench.device, 0)
    submit = candidates.submits(runner, config)

    def two() -> None:
        for wait in [submit(batch), submit(batch)]:
            wait()

    note = "peak of torch's allocator less the weights, two batches in flight"
    row = _row(bench, f"GPU memory of {tokens:,} tokens", shape, note, tokens)
    aims = {OURS: at_most(800, " MiB")} if shape.layers == 24 else {}
    bench.add(row, {OURS: Sampled([_peak(bench, before, two)])}, {}, aims)


def test_growth(bench: Bench) -> None:
    """Batches of ever other sizes should leave nothing behind."""
    shape, tokens = candidates.encoder_shape(bench), bench.pick(TOKENS, 15)
    config, weights = candidates.model(bench, shape)
    runner = candidates.runner(bench, config, weights)
    submit = candidates.submits(runner, config)

    def encode(count: int, size: int, seed: int) -> None:
        for i in range(count):
            lengths = mix("passages", size - bench.pick(97, 1) * i, seed + i, bench.pick(512, 9))
            submit(candidates.batch(config, lengths, bench.device, i))()

    count = bench.pick(25 if bench.scale.name == "quick" else 100, 1)
    encode(bench.pick(2, 1), tokens, 0)
    encode(bench.pick(3, 1), bench.pick(3000, 8), 0)  # one bucket: eager, captured, replayed
    before = _allocated(bench)
    encode(count, tokens, 2)
    growth = (_allocated(bench) - before) / 2**20
    note = "of what torch's allocator holds, after five batches of large and small size"
    row = _row(bench, f"GPU memory, growth over {count} batches", shape, note, tokens)
    bench.add(row, {OURS: Sampled([growth])}, {}, {OURS: at_most(1, " MiB")})


def test_call(bench: Bench) -> None:
    """A call of many passages, text to numpy, beside the peers at their own batch sizes."""
    shape, tokens = candidates.encoder_shape(bench), bench.pick(4 * TOKENS, 15)
    given = texts(mix("passages", tokens, 0, bench.pick(512, 9)), 0)
    makers: dict[str, Callable[[], Any]] = {
        OURS: lambda: candidates.encodes(candidates.engine(bench, shape)),
        **bench.slow(candidates.text_peers(bench, shape), "quick"),
    }
    found, absent = {}, {}
    for name, make in makers.items():
        gc.collect()
        try:
            run = make()
        except (Absent, ImportError) as reason:
            absent[name] = str(reason)
            continue
        before = _allocated(bench)
        found[name] = Sampled([_peak(bench, before, partial(run, given))])
        del run
    note = "peak of torch's allocator above what the loaded model and its CUDA graphs hold"
    row = _row(bench, f"GPU memory of a call of {tokens:,} tokens", shape, note, tokens)
    if not found[OURS].seconds[0]:  # a smoke test: no ratio to 0
        found[OURS].seconds[0] = 1e-6
    bench.add(row, found, absent, {candidates.FLAG: times(1)})
