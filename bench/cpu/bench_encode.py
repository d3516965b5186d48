"""Text to numpy on a CPU, against every peer that runs the same weights there.

Padding peers sort by length and pad batch by batch; how many texts they take at a time is tried
out for each workload. FlagEmbedding has its default of 256 in the "online" rows only.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence

import pytest

from bench.core import record
from bench.core.dtypes import DTYPES, NAMES
from bench.core.harness import OURS, Aim, Bench, Row, share, times
from bench.core.workloads import (
    OUTPUTS,
    Shape,
    encoder_work,
    mix,
    padding_ratio,
    ragged_lengths,
    texts,
    weight_bytes,
)
from bench.cpu import candidates
from bench.cpu.candidates import Peers
from bench.peers import encoders
from bench.peers.linears import LINEARS, BareLinears

PADDED_BATCH = 8  # of the padding ratio that rows state
SORTED = f"the padding ratio is that of sorted batches of {PADDED_BATCH}"
TRIED = (
    f"padding peers take {', '.join(map(str, encoders.BATCHES))} sorted texts at a time, "
    f"FlagEmbedding {', '.join(map(str, encoders.FLAG_BATCHES))}: what is fastest in a trial"
)
PROBE = "FlagEmbedding runs its longest batch twice, first as a probe for memory"
TOKENS = {"chat": 1536, "passages": 2560, "documents": 4096, "mixed": 2560}
LONGEST = 4096  # padded peers end


@pytest.fixture(autouse=True)
def _memory(bench: Bench) -> Iterator[None]:
    """Models of 1.2 GB each do not wait for the collector's next round."""
    yield
    if not bench.scale.smoke:
        gc.collect()


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("name", ["chat", "passages", "documents", "mixed"])
def test_mix(bench: Bench, name: str, dtype: str) -> None:
    """All three outputs of a few thousand tokens."""
    if bench.scale.smoke and name != "mixed":
        pytest.skip("one toy size is that of the mixed row")
    lengths = mix(name, bench.pick(TOKENS[name], 150), longest=bench.pick(LONGEST, 60))
    _encode(
        bench,
        f"encode {name}",
        lengths,
        dtype,
        rounds=3 if name == "documents" else 4,
        padding=padding_ratio(lengths, PADDED_BATCH),
        aims={"OpenVINO": times(1.2)} if name in ("passages", "mixed") else {},
        note=f"{SORTED}; {TRIED}",
    )


@pytest.mark.parametrize("output", OUTPUTS)
def test_one_output(bench: Bench, output: str) -> None:
    lengths = mix("passages", bench.pick(TOKENS["passages"], 150), longest=bench.pick(512, 60))
    note = f"{SORTED}; {TRIED}"
    if output == "dense":
        note += "; sentence-transformers pads on a CPU: its unpadded path needs a GPU"
    _encode(
        bench,
        f"encode passages, {output} alone",
        lengths,
        "fp32",
        outputs=(output,),
        rounds=3,
        padding=padding_ratio(lengths, PADDED_BATCH),
        note=note,
    )


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("layers", [2, 24])
def test_online(bench: Bench, layers: int, dtype: str) -> None:
    """One call of 24 ragged texts, FlagEmbedding as it comes: all of them in one batch."""
    bench.full_only(layers == 24)
    lengths = ragged_lengths(24, high=bench.pick(331, 40))
    _encode(
        bench,
        "encode online, 24 texts",
        lengths,
        dtype,
        layers=layers,
        tuned=False,
        rounds=3 if layers == 24 else 5,
        padding=padding_ratio(lengths),
        aims={
            "FlagEmbedding": times(5 if dtype == "fp32" else 18),
            LINEARS: share(0.85),
            "OpenVINO": times(1.2),
        }
        if dtype != "int8"
        else {"OpenVINO": times(1)},
        note=f"{PROBE}; the padding ratio is that of one batch, which FlagEmbedding makes at its "
        "default batch size",
    )


def test_bulk(bench: Bench) -> None:
    """Many short texts: sorted by length there is little padding left to save."""
    lengths = ragged_lengths(bench.pick(384, 40), high=64)
    _encode(
        bench,
        f"encode bulk, {len(lengths):,} texts of up to 64 tokens",
        lengths,
        "fp32",
        # Neighbours in length, as in sorted batches, from the middle and from the long end.
        sample=sorted(lengths)[len(lengths) // 2 :][:32] + sorted(lengths)[-32:],
        rounds=3,
        padding=padding_ratio(lengths, PADDED_BATCH),
        aims={LINEARS: share(0.85)},
        note=f"{SORTED}; {TRIED}",
    )


def test_longest(bench: Bench) -> None:
    """A text of the model's limit, m3fast alone: padded peers have minutes to do."""
    bench.full_only(True)
    _encode(bench, "encode one text of 8,192 tokens", [8192], "fp32", alone=True, rounds=3)


def _encode(
    bench: Bench,
    name: str,
    lengths: list[int],
    dtype: str,
    *,
    rounds: int,
    layers: int = 2,
    outputs: Sequence[str] = OUTPUTS,
    sample: list[int] | None = None,
    tuned: bool = True,
    alone: bool = False,
    padding: float | None = None,
    aims: Mapping[str, Aim] | None = None,
    note: str = "",
) -> None:
    shape = bench.encoder_shape(layers)
    path = bench.checkpoint(shape)
    row, linears = _row(bench, shape, name, lengths, dtype, outputs, padding, note)
    inputs = [texts(lengths, seed) for seed in range(3)]
    its = Peers(bench, path, dtype, texts(sample, 7) if sample else inputs[0], outputs, tuned)
    makers = its.makers
    if alone:
        makers = {OURS: makers[OURS]}
    makers = {**makers, LINEARS: linears.make}
    bench.compare(
        row,
        makers,
        inputs,
        rounds=rounds,
        aims=aims,
        warm=inputs[1][:2],
        void=None if alone else its.gemm_shares(sum(lengths)),
        **its.judges,
    )


def _row(
    bench: Bench, shape: Shape, name: str, lengths: list[int], dtype: str, outputs: Sequence[str],
    padding: float | None, note: str,
) -> tuple[Row, BareLinears]:  # fmt: skip
    itemsize = DTYPES[dtype].itemsize
    about = {
        "name": f"{name}, {shape.layers} layers, {dtype}",
        "shape": f"{shape}, {len(lengths)} texts of {min(lengths)} to {max(lengths)} tokens",
        "dtype": NAMES[dtype],
        "tokens": sum(lengths),
        "padding": padding,
        "unit": "tokens/s",
        "work": encoder_work(shape, lengths, outputs),
        "moved": weight_bytes(shape, itemsize, outputs),
        "model": True,
    }
    lacks = record.lacks(dtype)
    bench.need(Row(**about), not lacks, lacks)
    linears = BareLinears(shape, sum(lengths), DTYPES[dtype], trial=not bench.scale.smoke)
    return Row(**about, note=candidates.note(dtype, note, str(linears))), linears
