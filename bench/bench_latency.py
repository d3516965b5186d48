"""One query of 20 tokens, text to numpy, all three outputs: what a search box waits for."""

from __future__ import annotations

from functools import partial

import pytest

from bench import peers
from bench.harness import OURS, Bench, Row, times
from bench.measure import P99_SAMPLES
from bench.workloads import Shape, checkpoint, texts


@pytest.mark.parametrize("layers", [4, 24])
def test_single_query(bench: Bench, layers: int) -> None:
    bench.full_only(layers == 24)
    shape = bench.pick(Shape(layers), Shape(2, 128))
    path = checkpoint(shape)
    bench.compare(
        Row(
            f"one query of 20 tokens, {layers} layers, fp32",
            shape=f"{shape}, a str in, three arrays out",
            note="FlagEmbedding runs the forward pass twice, first as a probe for memory",
        ),
        {
            "FlagEmbedding": partial(peers.flag_embedding, path),
            OURS: partial(peers.m3fast, path),
            "ONNX Runtime": partial(peers.onnx_runtime, path, 1, bench.threads),
            "OpenVINO": partial(peers.openvino, path, 1, bench.threads),
        },
        [texts([20], seed)[0] for seed in range(16)],
        rounds=P99_SAMPLES,
        aims={"FlagEmbedding": times(3)},
        judge=peers.differ(1e-4),
    )
