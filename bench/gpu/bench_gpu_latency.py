"""Latency on a GPU: queries of 20 tokens, one and some at a time."""

from __future__ import annotations

import json

import pytest
import torch

from bench.core import child
from bench.core.harness import OURS, Bench, Row, micros, times
from bench.core.measure import P99_SAMPLES, Absent, Sampled
from bench.core.workloads import encoder_work, queries, texts, weight_bytes
from bench.gpu import candidates
from bench.gpu.candidates import FLAG

QUERY = 20
EAGER = "without graphs"
ONE = pytest.param(1, marks=pytest.mark.first)


def _row(bench: Bench, name: str, dtype: str, batch: int, note: str) -> Row:
    shape = candidates.encoder_shape(bench)
    lengths = [QUERY] * batch
    return Row(
        f"{name}, {shape.layers} layers, bf16",
        shape=f"{shape}, {batch} of {QUERY} tokens, all three outputs",
        dtype=dtype,
        tokens=sum(lengths),
        work=encoder_work(shape, lengths),
        moved=weight_bytes(shape, 2),
        model=True,
        length=QUERY,
        batch=batch,
        note=note,
    )


@pytest.mark.parametrize("batch", [ONE, 8])
def test_query_gpu_time(bench: Bench, batch: int) -> None:
    """What the GPU does, launches aside."""
    if bench.scale.smoke and batch > 1:
        pytest.skip("one toy size is enough")
    candidates.not_quick(bench, batch > 1)
    shape = candidates.encoder_shape(bench)
    config, weights = candidates.model(bench, shape)
    inputs = [candidates.batch(config, [QUERY] * batch, bench.device, seed) for seed in range(4)]
    runner = candidates.runner(bench, config, weights)
    submit = candidates.submits(runner, config)
    for _ in range(bench.pick(3, 1)):  # eager, captured, replayed
        submit(inputs[0])()
    bench.compare(
        _row(
            bench, f"{queries(batch, QUERY)} in GPU time", candidates.dtype_of(weights), batch,
            "from upload to download; weights come from memory, not from L2",
        ),
        {
            OURS: lambda: submit,
            **bench.slow(candidates.strong_peer(bench, config, weights, inputs[0])),
        },
        inputs,
        rounds=P99_SAMPLES,
        short=True,
        aims={OURS: micros(400)} if batch == 1 and shape.layers == 24 else {},
        judge=candidates.judge(config, weights, inputs[0]),
        ahead=2e-3,
        stream=runner.stream,
        void=candidates.strong_gemm_shares(bench, weights, QUERY * batch),
    )  # fmt: skip


@pytest.mark.parametrize("batch", [ONE, 2, 4, 8, 16, 32])
def test_text_to_numpy(bench: Bench, batch: int) -> None:
    """Strings in, three arrays out, with CUDA graphs and launched kernel by kernel."""
    if bench.scale.smoke and batch > 2:
        pytest.skip("toy sizes of this row are those of 1 and 2 queries")
    candidates.not_quick(bench, batch not in (1, 8))
    shape = candidates.encoder_shape(bench)
    engine = candidates.engine(bench, shape)
    eager = candidates.engine(bench, shape, graphs=False)
    inputs = [texts([QUERY] * batch, seed) for seed in range(16)]
    bench.compare(
        _row(
            bench, f"{queries(batch, QUERY)}, text to numpy on the GPU",
            candidates.dtype_of(engine), batch,
            "wall time, warm; sentence-transformers returns dense vectors only",
        ),
        {
            OURS: lambda: candidates.encodes(engine),
            EAGER: lambda: candidates.encodes(eager),
            **bench.slow(candidates.text_peers(bench, shape)),
        },
        [x[0] for x in inputs] if batch == 1 else inputs,
        rounds=P99_SAMPLES if batch in (1, 8) else 50,
        short=True,
        aims={OURS: micros(800), FLAG: times(20)} if batch == 1 and shape.layers == 24 else {},
        judge=candidates.same_dense,
    )  # fmt: skip


COLD = {OURS: "warm", "without warm-up": "cold", FLAG: "flag"}


def test_first_query(bench: Bench) -> None:
    """The first call of a fresh process, once the model is loaded: after `warmup`, and without."""
    candidates.not_quick(bench, True)
    shape = candidates.encoder_shape(bench)
    row = _row(
        bench, f"first query of {QUERY} tokens in a process on the GPU",
        bench.pick("bfloat16", "float32"), 1,
        "wall time of the first call; loading and warm-up are before it; a process per sample; "
        "kernels that Triton compiled in an earlier process come from its cache",
    )  # fmt: skip
    text, path = texts([QUERY], 0)[0], str(bench.checkpoint(shape))
    found = {name: Sampled() for name in COLD}
    absent: dict[str, str] = {}
    vectors: dict[str, torch.Tensor] = {}
    for i in range(min(bench.scale.rounds or 5, 5)):
        for name, way in COLD.items():
            if name in absent:
                continue
            try:
                if way == "flag" and bench.device.type != "cuda":
                    raise Absent("needs a CUDA device")
                given = (way, path, str(bench.device), row.dtype, text)
                said = child.run("bench.gpu.child_first", *given)
            except Absent as reason:
                absent[name] = str(reason)
                del found[name]
                continue
            its = json.loads(said.strip().splitlines()[-1])
            found[name].seconds.append(its["seconds"])
            vectors[name] = torch.tensor(its["dense"])[None]
            found[name].wrong = candidates.same_dense(name, vectors[OURS], vectors[name])
            bench.say(f"{row.name}: round {i + 1}: {name} {its['seconds']:.3g} s")
    bench.add(row, found, absent, {})
