"""Cost against text length on a GPU: batches of 32k tokens, from many short texts to few long."""

from __future__ import annotations

import pytest

from bench import gpuencode
from bench.gpuencode import AHEAD, TOKENS
from bench.harness import OURS, Bench, Row
from bench.workloads import encoder_work, weight_bytes

LENGTHS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


@pytest.mark.parametrize("length", LENGTHS)
def test_length(bench: Bench, length: int) -> None:
    if bench.scale.smoke and length != 16:
        pytest.skip("one toy size is enough")
    gpuencode.not_quick(bench, length not in (16, 512, 8192))
    shape = gpuencode.encoder_shape(bench)
    config, weights = gpuencode.model(bench, shape)
    if length > config.max_length:
        pytest.skip(f"the model takes {config.max_length} tokens")
    lengths = [length] * bench.pick(TOKENS // length, 2)
    inputs = [gpuencode.batch(config, lengths, bench.device, seed) for seed in range(2)]
    runner = gpuencode.runner(bench, config, weights)
    bench.compare(
        Row(
            f"encode on the GPU, texts of {length} tokens, {shape.layers} layers, bf16",
            shape=f"{shape}, {len(lengths)} texts of {length} tokens",
            dtype=gpuencode.dtype_of(weights),
            tokens=sum(lengths),
            unit="tokens/s",
            work=encoder_work(shape, lengths),
            moved=weight_bytes(shape, 2),
            model=True,
            length=length,
            note="GPU time of one batch with all three outputs, upload included",
        ),
        {
            OURS: lambda: gpuencode.submits(runner, config),
            **bench.slow(gpuencode.strong_peer(bench, config, weights, inputs[0]), "quick"),
        },
        inputs,
        rounds=20,
        judge=gpuencode.judge(config, weights, inputs[0]),
        ahead=AHEAD,
        stream=runner.stream,
        void=gpuencode.strong_gate(bench, weights, sum(lengths)),
    )
