"""The embedded default as it is: how many tokens a laptop encodes per second."""

from __future__ import annotations

import pytest

from bench.core import record
from bench.core.dtypes import NAMES, NO_BF16
from bench.core.harness import Bench, Row
from bench.core.workloads import OUTPUTS, TINY, mix, padding_ratio, texts
from bench.cpu import candidates
from bench.cpu.candidates import Peers
from bench.peers import encodings

# Its weights were trained and rounded to fp16, whose bf16 errors are larger than random ones'.
TOLERANCE = {"fp32": 1e-4, "bf16": 1e-1}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_passages(bench: Bench, dtype: str) -> None:
    if bench.model:
        pytest.skip("--model has rows of its own")
    lengths = mix("passages", bench.pick(40_000, 150), longest=bench.pick(512, 60))
    sizes = f"{len(lengths)} texts of {min(lengths)} to {max(lengths)} tokens"
    row = Row(
        name=f"m3fast-tiny, passages, all outputs, {dtype}",
        shape=f"{bench.shape_of(TINY)}, {sizes}",
        dtype=NAMES[dtype],
        tokens=sum(lengths),
        padding=padding_ratio(lengths, 8),
        unit="tokens/s",
        note=candidates.note(dtype, "the padding ratio is that of sorted batches of 8"),
    )
    if dtype == "bf16":
        bench.need(row, record.has_bf16(), NO_BF16)
    inputs = [texts(lengths, seed) for seed in range(3)]
    bench.compare(
        row,
        Peers(bench, TINY, dtype, inputs[0][:64]).makers,
        inputs,
        rounds=5,
        warm=inputs[1][:2],
        judge=encodings.differ(TOLERANCE[dtype], OUTPUTS),
    )
