"""The whole path to the host and back: the engine on GPU kernels against the CPU's engine."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from checkpoints import TINY_VOCAB, make_checkpoint, overflowing
from gpurunners import (
    SHAPE,
    TEXTS,
    as_near_as_the_cpu,
    cpu_engine,
    encode,
    ids_of,
    random_ids,
)
from nearness import near, same

from m3fast import AsyncEngine, Engine
from m3fast.errors import NonFiniteError
from m3fast.runner import buckets, gpu
from m3fast.runner.buckets import BUCKETS
from m3fast.runner.gpu import GpuRunner
from m3fast.runner.transfer import Transfer


@pytest.mark.usefixtures("tall")
def test_all_outputs(pair, monkeypatch) -> None:
    """Batches of one text to all of them: buckets, and beyond the last one."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a slower path would be said
        for texts in (TEXTS, TEXTS[:1], TEXTS[1:5]):
            found, expected = (encode(engine, monkeypatch, texts) for engine in pair)
            same(expected, found, 1e-5)


@pytest.mark.usefixtures("tall")
@pytest.mark.parametrize("only", ["dense", "sparse", "colbert"])
def test_one_output(pair, monkeypatch, only) -> None:
    chosen = {name: name == only for name in ("dense", "sparse", "colbert")}
    for texts in (TEXTS[3:5], TEXTS[3:]):
        found, whole = (encode(e, monkeypatch, texts, **o) for e, o in
                        zip(pair, (chosen, {}), strict=True))  # fmt: skip
        assert [getattr(found, name) is not None for name in chosen] == list(chosen.values())
        if only == "sparse":
            np.testing.assert_array_equal(found.sparse.indices, whole.sparse.indices)
            np.testing.assert_allclose(found.sparse.values, whole.sparse.values, atol=1e-5)
        elif only == "dense":
            np.testing.assert_allclose(found.dense, whole.dense, atol=1e-5)
        else:
            np.testing.assert_allclose(found.colbert.values, whole.colbert.values, atol=1e-5)


@pytest.mark.usefixtures("tall")
@pytest.mark.parametrize("pooling", ["last_token", "mean"])
def test_pooling_and_widths(path, device, monkeypatch, pooling) -> None:
    monkeypatch.setattr(buckets, "BUCKETS", (32, 48))
    options = dict(pooling=pooling, normalize=False, truncate_dim=24)
    ours = Engine.from_pretrained(path, device=str(device), dtype="float32", **options)
    plain = cpu_engine(path, monkeypatch, **options)
    for texts in (TEXTS[:2], TEXTS[3:6]):
        same(encode(plain, monkeypatch, texts), encode(ours, monkeypatch, texts), 2e-5)
    only = dict(sparse=False, colbert=False)
    found, expected = (encode(e, monkeypatch, TEXTS[3:5], **only) for e in (ours, plain))
    np.testing.assert_allclose(found.dense, expected.dense, atol=2e-5)


@pytest.mark.usefixtures("tall")
@pytest.mark.parametrize("only", ["dense", "sparse", "colbert"])
def test_what_is_not_finite_is_refused(tmp_path, device, monkeypatch, only) -> None:
    """In a bucket, beyond the last one, and in neither once the text has gone."""
    monkeypatch.setattr(buckets, "BUCKETS", (16, 32))
    bad = overflowing(make_checkpoint(tmp_path, **SHAPE), "the")
    engine = Engine.from_pretrained(bad, device=str(device), dtype="float32")
    plain = cpu_engine(bad, monkeypatch)
    chosen = {name: name == only for name in ("dense", "sparse", "colbert")}
    for texts in (["a fine text", "x"], [f"text {i}" for i in range(12)]):
        with pytest.raises(NonFiniteError, match=rf"texts\[1\]: .*{only}"):
            engine.encode([texts[0], "the", *texts[2:]], **chosen)
        found, expected = (encode(e, monkeypatch, texts, **chosen) for e in (engine, plain))
        if only == "dense":
            np.testing.assert_allclose(found.dense, expected.dense, atol=1e-5)
        else:
            a, b = (getattr(e, only).values for e in (found, expected))
            np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.usefixtures("tall")
def test_streaming_and_windows(pair, monkeypatch) -> None:
    """Texts of several windows, tokenized ahead, joined in order."""
    ours, plain = pair
    monkeypatch.setattr("m3fast.engine.engine.GPU_WINDOW_TEXTS", 3)
    monkeypatch.setattr(ours, "device", torch.device("cuda"))  # windows as on a GPU
    texts = [TEXTS[i] for i in (3, 4, 5, 0, 1, 2, 0)]
    expected = encode(plain, monkeypatch, texts)
    same(expected, ours.encode(texts), 1e-5)
    parts = list(ours.encode_iter(iter(texts)))
    assert [len(part) for part in parts] == [3, 3, 1]
    for i, part in enumerate(parts):
        same(expected[3 * i : 3 * i + 3], part, 1e-5)


def test_token_ids_of_any_length(pair, monkeypatch) -> None:
    """More texts than half a bucket's tokens, and texts of one token."""
    texts = [[0], [0, 5, 2], [7], *[[5]] * 20]
    found, expected = (encode(engine, monkeypatch, texts) for engine in pair)
    same(expected, found, 1e-5)


@pytest.mark.usefixtures("tall")
def test_warmup(path, device, monkeypatch, shapes) -> None:
    """Each bucket's tile classes of long, of short and of lonely texts: thrice each."""
    monkeypatch.setattr(buckets, "BUCKETS", (32, 96))
    monkeypatch.setattr(buckets, "FEWEST_TILES", 1)
    ours = Engine.from_pretrained(path, device=str(device), dtype="float32")
    ours.warmup(sparse=False, colbert=False)
    # Of the largest first, once for the size of all; of the least last, once for a vector alone.
    expected = [(96, 4)] + [(96, 4)] * 3 + [(96, 8)] * 3 + [(32, 1)] * 4
    assert sorted(shapes) == sorted(expected)
    captured = sorted(key[:2] for key in ours.runner.graphs.keys)
    assert captured == (sorted(set(expected)) if device.type == "cuda" else [])


def test_tile_classes() -> None:
    """Room for every count, hardly more than twice what is needed, and few of them."""
    for most in range(1, 700, 3):
        rooms = [buckets.tile_class(count, most) for count in range(1, most + 1)]
        for count, room in enumerate(rooms, 1):
            assert count <= room and room // 2 < max(count, buckets.FEWEST_TILES)
        assert len(set(rooms)) <= 6


@pytest.mark.usefixtures("tall")
def test_a_bucket_by_its_tiles(path, device, monkeypatch, shapes) -> None:
    """The same tokens in few texts and in many; results that are copied aside."""
    monkeypatch.setattr(buckets, "BUCKETS", (96,))
    monkeypatch.setattr(buckets, "FEWEST_TILES", 1)
    monkeypatch.setattr(gpu, "INLINE_WORDS", 0)
    ours = Engine.from_pretrained(path, device=str(device), dtype="float32")
    plain = cpu_engine(path, monkeypatch)
    for lengths in ([90], [17] * 5, [60, 3, 20]):
        ids = [[0, *range(5, 3 + n), 2] for n in lengths]
        found, expected = (encode(engine, monkeypatch, ids) for engine in (ours, plain))
        same(expected, found, 1e-5)
    assert shapes == [(96, 4), (96, 4), (96, 8), (96, 4)]


@pytest.mark.usefixtures("tall")
def test_requests_that_share_batches(pair, monkeypatch) -> None:
    """The async engine keeps several batches in flight; each request gets its own rows."""
    ours, plain = pair
    asked = [(TEXTS[i : i + 3], dict(sparse=i % 2 == 0, truncate_dim=(None, 24)[i % 3 == 0]))
             for i in range(5)]  # fmt: skip

    async def main():
        async with AsyncEngine(ours) as serving:
            calls = [serving.encode(texts, max_length=128, **o) for texts, o in asked]
            return await asyncio.gather(*calls)

    for (texts, options), found in zip(asked, asyncio.run(main()), strict=True):
        expected = encode(plain, monkeypatch, texts, **options)
        np.testing.assert_allclose(found.dense, expected.dense, atol=1e-5)
        np.testing.assert_allclose(found.colbert.values, expected.colbert.values, atol=1e-5)
        assert (found.sparse is None) == (not options["sparse"])
        if found.sparse is not None:
            np.testing.assert_array_equal(found.sparse.indices, expected.sparse.indices)
            np.testing.assert_allclose(found.sparse.values, expected.sparse.values, atol=1e-5)


# What only a GPU can show.


@pytest.mark.gpu
def test_full_width_against_the_cpu(big, rng) -> None:
    as_near_as_the_cpu(big, random_ids(rng, TINY_VOCAB, 16, 250))


@pytest.mark.gpu
@pytest.mark.parametrize("sizes", [BUCKETS, (32,)], ids=["bucket", "exact"])
def test_24_layers(tmp_path, rng, monkeypatch, sizes) -> None:
    monkeypatch.setattr(buckets, "BUCKETS", sizes)
    deep = make_checkpoint(tmp_path, hidden=256, heads=4, ffn=1024, layers=24, deep=True)
    as_near_as_the_cpu(deep, random_ids(rng, TINY_VOCAB, 12, 200))


@pytest.mark.gpu
@pytest.mark.parametrize("pooling", ["cls", "mean", "mcls"])
def test_graphs_equal_eager(big, rng, pooling, shapes) -> None:
    graphed = Engine.from_pretrained(big, device="cuda", pooling=pooling)
    eager = Engine.from_pretrained(big, device="cuda", pooling=pooling)
    eager.runners = [
        GpuRunner(eager.config, eager.runner.weights, eager.device, graphs=False)
    ]
    for lengths in [[20], [60], [30] * 8, [500] * 3, [33] * 40, [4000], [700] * 11] * 3:
        ids = ids_of(rng, TINY_VOCAB, lengths)
        same(eager.encode(ids), graphed.encode(ids), 0.0)
    assert {bucket for bucket, _ in shapes} == {32, 64, 256, 1536, 4096, 8192}
    # The first batch of an engine gives the largest bucket its size, which no graph does.
    assert {key[:2] for key in graphed.runner.graphs.keys} == {
        shape for shape in shapes if shapes.count(shape) >= 6
    }
    assert len(eager.runners[0].graphs) == 0


@pytest.mark.gpu
@pytest.mark.parametrize("sizes", [BUCKETS, (32,)], ids=["buckets", "exact"])
def test_several_batches_in_flight(path, rng, monkeypatch, sizes) -> None:
    """Every row, while its neighbours are moved in and out of the same memory, all too late."""
    monkeypatch.setattr(buckets, "BUCKETS", sizes)
    fetch = Transfer.fetch

    def late(self, *given):
        for stream in (self.stream, torch.cuda.current_stream()):
            with torch.cuda.stream(stream):
                torch.cuda._sleep(10_000_000)  # of a GPU's cycles: milliseconds
        return fetch(self, *given)

    monkeypatch.setattr(Transfer, "fetch", late)
    given = dict(dtype="float32", token_budget=6000)
    ours, plain = (Engine.from_pretrained(path, device=d, **given) for d in ("cuda", "cpu"))
    ids = random_ids(rng, TINY_VOCAB, 3000, 60)
    expected = plain.encode(ids)
    for _ in range(3):
        near(expected, ours.encode(ids), 2e-4)


@pytest.mark.gpu
def test_a_thousand_ragged_batches(path, rng) -> None:
    ours, plain = (
        Engine.from_pretrained(path, device=d, dtype="float32") for d in ("cuda", "cpu")
    )
    batches = [
        random_ids(rng, TINY_VOCAB, int(rng.integers(1, 40)), int(rng.choice([8, 30, 128])))
        for _ in range(1000)
    ]
    expected, begin = plain.encode([ids for batch in batches for ids in batch]), 0
    for batch in batches:
        near(expected[begin : begin + len(batch)], ours.encode(batch), 2e-4)
        begin += len(batch)


ORDERED = """
import sys
import torch
from m3fast import Engine
from m3fast.runner.graphs import Graphs
from m3fast.kernels import native

native.cuda_library = lambda *_: None  # torch sees what torch launches
for pooling in ("cls", "mean", "mcls"):
    engine = Engine.from_pretrained(sys.argv[1], device="cuda", pooling=pooling, token_budget=9000)
    engine.runner.graphs = Graphs(None)
    texts = [[0, *range(4, 4 + n % 400), 2] for n in range(0, 16000, 53)]
    for some in (texts, texts[:2], texts[:20], texts[:40], texts):
        engine.encode(some)
    ids = torch.arange(12, device="cuda").view(2, 6)
    engine.runner.hidden_states(ids + 3, torch.arange(12).view(2, 6) < 10).cpu()
print("in order")
"""


@pytest.mark.gpu
def test_streams_are_ordered(path) -> None:
    """torch's sanitizer finds no access that another stream's does not wait for."""
    run = subprocess.run(
        [sys.executable, "-c", ORDERED, str(path)],
        env=os.environ | {"TORCH_CUDA_SANITIZER": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.stdout == "in order\n", run.stderr


@pytest.mark.gpu
def test_8192_tokens(big, rng) -> None:
    ours = Engine.from_pretrained(big, device="cuda")
    ids = random_ids(rng, TINY_VOCAB, 3, 50)
    (long,) = ids_of(rng, TINY_VOCAB, [8192])
    alone, among = ours.encode([long]), ours.encode([*ids, long])
    assert (alone.dense[0] * among.dense[3]).sum() > 0.999
    assert len(alone.colbert[0]) == 8191
