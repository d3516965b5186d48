"""Text to numpy, all three outputs, against every peer that runs the same weights on a CPU."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from bench import measure, peers, record
from bench.harness import OURS, Bench, Row, share, times
from bench.workloads import Shape, checkpoint, padding_ratio, ragged_lengths, texts

# ONNX Runtime and OpenVINO pad: small batches of like length suit them best.
PADDED_BATCH = 8
FLAG_BATCHES = (16, 32, 64)
# Vectors have length 1 and token weights are near 1; fp32 sums in another order differ by 1e-6.
FP32, BF16 = 1e-4, 5e-2
PROBE = "FlagEmbedding runs its longest batch twice, first as a probe for memory"
SORTED = f"ONNX Runtime and OpenVINO take batches of {PADDED_BATCH} sorted by length"


@pytest.mark.parametrize("layers", [4, 24])
def test_online(bench: Bench, layers: int) -> None:
    """One call of 24 ragged texts at fp32."""
    bench.full_only(layers == 24)
    shape = bench.pick(Shape(layers), Shape(2, 128))
    row, lengths = _online(bench, shape, "fp32", f"{PROBE}; {SORTED}")
    path = checkpoint(shape)
    bench.compare(
        row,
        {
            "FlagEmbedding": partial(peers.flag_embedding, path),
            OURS: partial(peers.m3fast, path),
            "bare linears": partial(peers.bare_linears, shape, sum(lengths), torch.float32),
            "ONNX Runtime": partial(peers.onnx_runtime, path, PADDED_BATCH, bench.threads),
            "OpenVINO": partial(peers.openvino, path, PADDED_BATCH, bench.threads),
        },
        [texts(lengths, seed) for seed in range(3)],
        rounds=3 if layers == 24 else 5,
        aims={"FlagEmbedding": times(5), "bare linears": share(0.85)},
        warm=texts(lengths[:2], 9),
        judge=peers.differ(FP32),
    )


@pytest.mark.parametrize("layers", [4, 24])
def test_online_bf16(bench: Bench, layers: int) -> None:
    """The same call at dtype="auto" where that is bf16; on a CPU FlagEmbedding has fp32 only."""
    bench.full_only(layers == 24)
    shape = bench.pick(Shape(layers), Shape(2, 128))
    row, lengths = _online(bench, shape, "bf16", f"{PROBE}, and computes in fp32")
    bench.need(row, record.has_bf16(), "awaits a CPU with AVX512_BF16 or AMX")
    path = checkpoint(shape)
    bench.compare(
        row,
        {
            "FlagEmbedding": partial(peers.flag_embedding, path),
            OURS: partial(peers.m3fast, path, bf16=True),
            "bare linears": partial(peers.bare_linears, shape, sum(lengths), torch.bfloat16),
        },
        [texts(lengths, seed) for seed in range(3)],
        rounds=3 if layers == 24 else 5,
        aims={"FlagEmbedding": times(18), "bare linears": share(0.85)},
        warm=texts(lengths[:2], 9),
        judge=peers.differ(BF16),
    )


@pytest.mark.parametrize("longest", [64, 331])
def test_bulk(bench: Bench, longest: int) -> None:
    """2,048 texts on 2 layers: FlagEmbedding sorts by length, so little padding is left to save."""
    bench.full_only(longest == 331)
    shape = bench.pick(Shape(2), Shape(2, 128))
    lengths = ragged_lengths(bench.pick(2048, 40), high=longest)
    path = checkpoint(shape)
    # Neighbours in length, as in its sorted batches, from the middle and from the long end.
    ordered = sorted(lengths)
    middle = len(ordered) // 2
    sample = texts(ordered[middle : middle + 64] + ordered[-64:], 7)
    best = _best_flag_batch(bench, path, sample) or FLAG_BATCHES[0]
    bench.compare(
        Row(
            f"encode bulk, {len(lengths):,} texts of up to {longest} tokens, 2 layers, fp32",
            shape=f"{shape}, texts of {min(lengths)} to {longest} tokens",
            tokens=sum(lengths),
            padding=padding_ratio(lengths, best),
            unit="tokens/s",
            note=f"FlagEmbedding at batch size {best}, the best of {FLAG_BATCHES} in a trial; "
            f"the padding ratio is what its sorted batches have; {SORTED}",
        ),
        {
            "FlagEmbedding": partial(peers.flag_embedding, path, best),
            OURS: partial(peers.m3fast, path),
            "bare linears": partial(peers.bare_linears, shape, sum(lengths), torch.float32),
            "ONNX Runtime": partial(peers.onnx_runtime, path, PADDED_BATCH, bench.threads),
            "OpenVINO": partial(peers.openvino, path, PADDED_BATCH, bench.threads),
        },
        [texts(lengths, seed) for seed in range(2)],
        rounds=2,
        aims={"bare linears": share(0.85)},
        warm=texts(lengths[:2], 9),
        judge=peers.differ(FP32),
    )


def _online(bench: Bench, shape: Shape, dtype: str, note: str) -> tuple[Row, list[int]]:
    lengths = ragged_lengths(24, high=bench.pick(331, 40))
    row = Row(
        f"encode online, 24 texts, {shape.layers} layers, {dtype}",
        shape=f"{shape}, 24 texts of {min(lengths)} to {max(lengths)} tokens in one call",
        dtype={"fp32": "float32", "bf16": "bfloat16"}[dtype],
        tokens=sum(lengths),
        padding=padding_ratio(lengths),
        unit="tokens/s",
        note=note,
    )
    return row, lengths


def _best_flag_batch(bench: Bench, path: peers.Path, sample: list[str]) -> int | None:
    """Batch size that FlagEmbedding is quickest with, or None where it is not installed."""
    try:
        tried = {str(n): peers.flag_embedding(path, n) for n in FLAG_BATCHES}
    except ImportError:
        return None
    if bench.scale.smoke:
        return FLAG_BATCHES[0]
    return int(measure.fastest(tried, sample, sample[:2]))
