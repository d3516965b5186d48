"""Throughput of the encoder on a GPU: packed batches in GPU time, text to numpy in wall time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest

from bench.core.harness import OURS, Bench, Row, at_most, share, times
from bench.core.workloads import OUTPUTS, encoder_work, mix, padding_ratio, texts, weight_bytes
from bench.gpu import candidates
from bench.gpu.candidates import AHEAD, FLAG, LINEARS, STRONG, TOKENS

THREE = "all three outputs"
PASSAGES = pytest.param("passages", marks=pytest.mark.first)


def _row(
    bench: Bench, shape: Any, dtype: str, name: str, lengths: list[int], note: str,
    outputs: Sequence[str] = OUTPUTS, padded_batch: int = 32,
) -> Row:  # fmt: skip
    return Row(
        f"encode on the GPU, {name}, {shape.layers} layers, bf16",
        shape=f"{shape}, {len(lengths)} texts of {min(lengths)} to {max(lengths)} tokens",
        dtype=dtype,
        tokens=sum(lengths),
        padding=padding_ratio(lengths, padded_batch),
        unit="tokens/s",
        work=encoder_work(shape, lengths, outputs),
        moved=weight_bytes(shape, 2, outputs),
        model=True,
        note=f"{note}; the padding ratio is that of sorted batches of {padded_batch}",
    )


@pytest.mark.parametrize("kind", [PASSAGES, "mixed", "chat", "documents"])
def test_encode_batch(bench: Bench, kind: str) -> None:
    """32k tokens through all layers and heads; upload included, download not."""
    if bench.scale.smoke and kind != "passages":
        pytest.skip("one toy size is that of the passages")
    candidates.not_quick(bench, kind != "passages")
    shape = candidates.encoder_shape(bench)
    config, weights = candidates.model(bench, shape)
    lengths = mix(kind, bench.pick(TOKENS, 15), 0, bench.pick(config.max_length, 9))
    inputs = [candidates.batch(config, lengths, bench.device, seed) for seed in range(2)]
    runner = candidates.runner(bench, config, weights)
    tokens = sum(lengths)
    aims = {LINEARS: share(0.9)}
    if kind == "passages" and shape.layers == 24:
        aims |= {STRONG: times(1.3), OURS: at_most(float(f"{tokens / 0.85e6:.3g}"), " s")}
    note = "GPU time of one batch with all outputs, upload included; bare linears are a limit"
    bench.compare(
        _row(bench, shape, candidates.dtype_of(weights), kind, lengths, note),
        {
            OURS: lambda: candidates.submits(runner, config),
            **bench.slow(candidates.strong_peer(bench, config, weights, inputs[0])),
            LINEARS: partial(candidates.linears, bench, shape, tokens),
        },
        inputs,
        rounds=30,
        aims=aims,
        judge=candidates.judge(config, weights, inputs[0]),
        ahead=AHEAD,
        stream=runner.stream,
        void=candidates.strong_gemm_shares(bench, weights, tokens),
    )


@pytest.mark.parametrize("output", OUTPUTS)
def test_encode_output(bench: Bench, output: str) -> None:
    """One output alone, of passages, beside all three."""
    candidates.not_quick(bench, output != "dense")
    shape = candidates.encoder_shape(bench)
    config, weights = candidates.model(bench, shape)
    lengths = mix("passages", bench.pick(TOKENS, 15), 0, bench.pick(512, 9))
    inputs = [candidates.batch(config, lengths, bench.device, seed) for seed in range(2)]
    runner = candidates.runner(bench, config, weights)
    dtype = candidates.dtype_of(weights)
    bench.compare(
        _row(bench, shape, dtype, f"passages, {output} only", lengths, "GPU time", (output,)),
        {
            OURS: lambda: candidates.submits(runner, config, (output,)),
            THREE: lambda: candidates.submits(runner, config),
        },
        inputs,
        rounds=30,
        judge=candidates.judge(config, weights, inputs[0]),
        ahead=AHEAD,
        stream=runner.stream,
    )


@pytest.mark.parametrize("kind", ["passages", "mixed", "chat", "documents"])
def test_text_to_numpy(bench: Bench, kind: str) -> None:
    """Through tokeniser, encoder and heads; every output as numpy on the host."""
    if bench.scale.smoke and kind != "mixed":
        pytest.skip("one toy size is that of the mixed row")
    candidates.not_quick(bench, kind != "passages")
    shape = candidates.encoder_shape(bench)
    engine = candidates.engine(bench, shape)
    many = kind == "passages" and bench.scale.name != "quick"
    real = 180 * (2048 if many else 512)
    longest = bench.pick(engine.config.max_length, 20)
    lengths = mix(kind, bench.pick(real, 30), 0, longest)
    inputs = [texts(lengths, seed) for seed in range(2)]
    note = "wall time; sentence-transformers returns dense vectors only"
    dtype = candidates.dtype_of(engine)
    bench.compare(
        _row(bench, shape, dtype, f"text to numpy, {kind}", lengths, note, padded_batch=64),
        {
            OURS: lambda: candidates.encodes(engine),
            **bench.slow(candidates.text_peers(bench, shape)),
        },
        inputs,
        rounds=5,
        aims={FLAG: times(5)} if kind == "passages" else {},
        warm=inputs[0][:64],
        judge=candidates.same_dense,
    )
