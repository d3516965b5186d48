"""Peak memory of a growing corpus: streamed, it must not grow with it. m3fast-tiny, short texts."""

from __future__ import annotations

import importlib.util
import json

import pytest

from bench import child
from bench.harness import OURS, Bench, Row, at_most
from bench.measure import Sampled


@pytest.mark.parametrize("way", ["encode_iter", "cli"])
def test_peak_memory(bench: Bench, way: str) -> None:
    small, large = bench.pick((10_000, 100_000), (200, 1_000))
    row = Row(
        f"peak memory of {way}, {large:,} short texts",
        shape=f"m3fast-tiny, all outputs, texts of 5 to 12 words, one process each; "
        f"the peer is the same with {small:,} texts",
        unit="MiB",
    )
    here = way != "cli" or importlib.util.find_spec("m3fast.cli") is not None
    bench.need(row, here, "awaits m3fast.cli")
    counts = bench.pick((small, large), (small,))
    peaks = [
        json.loads(child.run("bench.child_memory", way, str(count), str(bench.threads)))["MiB"]
        for count in counts
    ]
    peer = f"{small:,} texts"
    found = {OURS: Sampled([peaks[-1]]), peer: Sampled([peaks[0]])}
    bench.add(row, found, {}, {peer: at_most(1.2, "×")}, lambda theirs, ours: ours[0] / theirs[0])
