"""Cost against text length on a GPU: batches of 32k tokens, from many short texts to few long."""

from __future__ import annotations

import pytest

from bench.core.harness import OURS, Bench, Row
from bench.core.workloads import encoder_work, weight_bytes
from bench.gpu import candidates
from bench.gpu.candidates import AHEAD, TOKENS

LENGTHS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


@pytest.mark.parametrize("length", LENGTHS)
def test_length(bench: Bench, length: int) -> None:
    if bench.scale.smoke and length != 16:
        pytest.skip("one toy size is enough")
    candidates.not_quick(bench, length not in (16, 512, 8192))
    shape = candidates.encoder_shape(bench)
    config, weights = candidates.model(bench, shape)
    if length > config.max_length:
        pytest.skip(f"the model takes {config.max_length} tokens")
    lengths = [length] * bench.pick(TOKENS // length, 2)
    inputs = [candidates.batch(config, lengths, bench.device, seed) for seed in range(2)]
    runner = candidates.runner(bench, config, weights)
    bench.compare(
        Row(
            f"encode on the GPU, texts of {length} tokens, {shape.layers} layers, bf16",
            shape=f"{shape}, {len(lengths)} texts of {length} tokens",
            dtype=candidates.dtype_of(weights),
            tokens=sum(lengths),
            unit="tokens/s",
            work=encoder_work(shape, lengths),
            moved=weight_bytes(shape, 2),
            model=True,
            length=length,
            note="GPU time of one batch with all three outputs, upload included",
        ),
        {
            OURS: lambda: candidates.submits(runner, config),
            **bench.slow(candidates.strong_peer(bench, config, weights, inputs[0]), "quick"),
        },
        inputs,
        rounds=20,
        judge=candidates.judge(config, weights, inputs[0]),
        ahead=AHEAD,
        stream=runner.stream,
        void=candidates.strong_gemm_shares(bench, weights, sum(lengths)),
    )
