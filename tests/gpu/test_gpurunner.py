"""The whole path to the host and back: the engine on GPU kernels against the CPU's engine."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import TEXTS, TINY_VOCAB, make_checkpoint, overflowing
from nearness import as_near, lexical_weights, near, same

from m3fast import AsyncEngine, Engine
from m3fast.errors import NonFiniteError
from m3fast.kernels import dispatch
from m3fast.kernels.gpu import layernorm
from m3fast.model import heads, mcls
from m3fast.runner import buckets, gpu
from m3fast.runner.base import Outputs
from m3fast.runner.buckets import BUCKETS
from m3fast.runner.gpu import GpuRunner
from m3fast.runner.graphs import Graphs
from m3fast.runner.transfer import Transfer
from m3fast.types import Selection

ALL = Outputs(True, True, True)
SHAPE = dict(hidden=64, heads=2, ffn=96, layers=1, seed=8)
# 1 to 120 tokens and all kinds of special ones; the interpreter is slow.
TEXTS = [*TEXTS[:3], *TEXTS[5:7], TEXTS[8], TEXTS[10]]


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"), **SHAPE)


def cpu_engine(path: Path, monkeypatch: pytest.MonkeyPatch, **options) -> Engine:
    """The path without GPU kernels."""
    with monkeypatch.context() as patch:
        patch.setattr(dispatch, "interpreter", False)
        return Engine.from_pretrained(path, device="cpu", dtype="float32", **options)


def encode(engine: Engine, monkeypatch: pytest.MonkeyPatch, texts=TEXTS, **options):
    with monkeypatch.context() as patch:
        if not isinstance(engine.runner, GpuRunner):
            patch.setattr(dispatch, "interpreter", False)
        return engine.encode(texts, max_length=options.pop("max_length", 128), **options)


@pytest.fixture
def pair(path, device, monkeypatch) -> tuple[Engine, Engine]:
    """GPU kernels and CPU; buckets that a few texts fill, and one text more than the last holds."""
    monkeypatch.setattr(buckets, "BUCKETS", (16, 48, 64))
    ours = Engine.from_pretrained(path, device=str(device), dtype="float32")
    assert isinstance(ours.runner, GpuRunner)
    return ours, cpu_engine(path, monkeypatch)


@pytest.fixture
def tall(monkeypatch) -> None:
    """Tiles of 16 tokens for LayerNorm: of one, nine tenths of the time goes to interpreting it."""
    if dispatch.interpreter:
        config = layernorm.LayerNormConfig(rows=16, warps=1)
        monkeypatch.setattr(layernorm, "_config", lambda *_: config)


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
def test_modules_behind_the_pooling(tmp_path, device, monkeypatch) -> None:
    monkeypatch.setattr(buckets, "BUCKETS", (16, 48))
    made = make_checkpoint(tmp_path, **SHAPE)
    modules = ("Transformer", "Pooling", "Dense")
    listed = [{"type": f"sentence_transformers.{kind}", "path": f"{i}_{kind}" if i else ""}
              for i, kind in enumerate(modules)]  # fmt: skip
    (made / "modules.json").write_text(json.dumps(listed))
    (made / "2_Dense").mkdir()
    config = {"in_features": 64, "out_features": 10}
    (made / "2_Dense" / "config.json").write_text(json.dumps(config))
    state = {"linear.weight": torch.randn(10, 64), "linear.bias": torch.randn(10)}
    torch.save(state, made / "2_Dense" / "pytorch_model.bin")
    ours = Engine.from_pretrained(made, device=str(device), dtype="float32")
    plain = cpu_engine(made, monkeypatch)
    for texts in (TEXTS[:2], TEXTS[3:6]):
        expected = encode(plain, monkeypatch, texts)
        assert expected.dense.shape == (len(texts), 10)
        same(expected, encode(ours, monkeypatch, texts), 1e-5)


def both_mcls(path: Path, device, monkeypatch, **options) -> tuple[Engine, Engine]:
    ours = Engine.from_pretrained(
        path, device=str(device), dtype="float32", pooling="mcls", **options
    )
    return ours, cpu_engine(path, monkeypatch, pooling="mcls", **options)


@pytest.mark.usefixtures("tall")
def test_mcls(path, device, monkeypatch) -> None:
    """CLS and word rows whose number the host never tells: buckets, and beyond the last one."""
    monkeypatch.setattr(buckets, "BUCKETS", (16, 48, 64))
    for module in (mcls, heads, gpu):  # 256 would be slow to interpret
        monkeypatch.setattr(module, "CLS_EVERY", 8)
    ours, plain = both_mcls(path, device, monkeypatch, truncate_dim=24)
    ids = [[0, *range(5, 5 + n), 2] for n in (0, 5, 6, 7, 13, 14, 20)] + [[0], [0, 0, 0, 2]]
    for texts in (TEXTS, TEXTS[:1], TEXTS[1:5], ids, ids[:3], ids[6:]):
        expected = encode(plain, monkeypatch, texts)
        same(expected, encode(ours, monkeypatch, texts), 2e-5)
        for only in ("dense", "colbert"):
            chosen = {name: name == only for name in ("dense", "sparse", "colbert")}
            found = encode(ours, monkeypatch, texts, **chosen)
            a, b = (getattr(each, only) for each in (found, expected))
            a, b = (a, b) if only == "dense" else (a.values, b.values)
            np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.usefixtures("tall")
def test_mcls_at_its_own_stretch(path, device, monkeypatch) -> None:
    monkeypatch.setattr(buckets, "BUCKETS", (288,))
    ours, plain = both_mcls(path, device, monkeypatch)
    texts = [[0, *range(5, 270), 2], [5]]
    found, expected = (encode(e, monkeypatch, texts, max_length=512) for e in (ours, plain))
    assert found.n_tokens.tolist() == [268, 1] and len(found.colbert[0]) == 266
    same(expected, found, 2e-5)


@pytest.mark.usefixtures("tall")
def test_streaming_and_windows(pair, monkeypatch) -> None:
    """Texts of several windows, tokenised ahead, joined in order."""
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


def test_hidden_states(pair, monkeypatch) -> None:
    ours, plain = pair
    ids = torch.tensor([[0, 5, 6, 2, 1, 1], [1, 0, 9, 7, 8, 2], [0, 2, 1, 1, 1, 1]])
    mask = ids != 1
    found = ours.hidden_states(ids.to(ours.device), mask.to(ours.device)).cpu()
    monkeypatch.setattr(dispatch, "interpreter", False)
    expected = plain.hidden_states(ids, mask)
    assert (found - expected).abs().max() < 1e-5 and (found[~mask] == 0).all()


@pytest.mark.usefixtures("tall")
def test_out_of_memory_frees_and_splits(pair, monkeypatch) -> None:
    """The runner's own allocations fail above a size."""
    ours, plain = pair
    run = GpuRunner._run_exact

    def limited(self, parts, size, *rest):
        if size.texts > 4:
            raise torch.OutOfMemoryError("as on a full device")
        return run(self, parts, size, *rest)

    monkeypatch.setattr(GpuRunner, "_run_exact", limited)
    with pytest.warns(RuntimeWarning, match="out of memory for 7 texts"):
        found = encode(ours, monkeypatch)
    same(encode(plain, monkeypatch), found, 1e-5)


def test_a_first_batch_that_fails_is_started_over(pair, monkeypatch) -> None:
    """Its buffers must not be kept half made: graphs would hold addresses that change."""
    ours, plain = pair
    compute = GpuRunner._compute
    sizes = []

    def fails_once(self, inputs, *rest):
        sizes.append(len(inputs[0]))
        if len(sizes) == 1:
            raise torch.OutOfMemoryError("as on a full device")
        compute(self, inputs, *rest)

    monkeypatch.setattr(GpuRunner, "_compute", fails_once)
    with pytest.raises(torch.OutOfMemoryError):
        ours.encode(TEXTS[0])
    found = ours.encode(TEXTS[0])
    same(encode(plain, monkeypatch, TEXTS[:1]), found, 1e-5)
    assert sizes == [64, 64, 16]


@pytest.fixture
def shapes(monkeypatch) -> list[tuple[int, int]]:
    """Bucket and tiles of each padded batch."""
    found, run = [], Graphs.run

    def noted(self, key, work):
        found.append(key[:2])
        run(self, key, work)

    monkeypatch.setattr(Graphs, "run", noted)
    return found


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


# What only a GPU can show.


@pytest.fixture(scope="module")
def big(tmp_path_factory) -> Path:
    """BGE-M3's width and heads, four layers."""
    folder = tmp_path_factory.mktemp("big")
    return make_checkpoint(
        folder, hidden=1024, heads=16, ffn=4096, layers=4, positions=8194, seed=9, deep=True
    )


def random_ids(rng, vocab: int, texts: int, longest: int) -> list[list[int]]:
    return ids_of(rng, vocab, rng.integers(2, longest + 1, texts))


def ids_of(rng, vocab: int, lengths) -> list[list[int]]:
    return [[0, *rng.integers(4, vocab, n - 2).tolist(), 2] for n in lengths]


def as_near_as_the_cpu(path: Path, ids: list[list[int]]) -> None:
    """bf16 on the GPU is as near to fp32 as bf16 on the CPU, twice over, text by text."""
    exact, plain, found = (
        Engine.from_pretrained(path, device=device, dtype=dtype).encode(ids)
        for device, dtype in (("cpu", "float32"), ("cpu", "bfloat16"), ("cuda", "bfloat16"))
    )
    others = exact.dense @ exact.dense.T - 2 * np.eye(len(ids))
    assert others.max() < 0.98, "texts must differ for a fault to show"
    given = (exact, plain, found)
    for parts, ends in (
        ([x.dense for x in given], np.arange(len(ids) + 1)),
        ([x.colbert.values for x in given], exact.colbert.offsets),
        lexical_weights(*given),
    ):
        e, p, f = map(torch.from_numpy, parts)
        as_near(f.bfloat16(), e, p, ends.tolist())


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


@pytest.mark.gpu
@pytest.mark.parametrize("pooling", ["cls", "mean", "last_token", "mcls"])
def test_submit_does_not_wait(big, rng, pooling) -> None:
    """torch refuses to wait for the device, in a bucket, in a large one and beyond the last."""
    ours = Engine.from_pretrained(big, device="cuda", pooling=pooling)
    options = ours.call().options
    alone = [Outputs(*(i == j for j in range(3))) for i in range(3)]
    for lengths in ([20], [300] * 20, [500] * 20):
        tokens = ours.tokenise(ids_of(rng, TINY_VOCAB, lengths), 8192)
        for outputs in (ALL, *alone):
            given = ([Selection(tokens, np.arange(len(tokens)))], outputs, options)
            before = [ours.runner.submit(*given)() for _ in range(2)][-1]  # captured
            torch.cuda.set_sync_debug_mode("error")
            try:
                waits = [ours.runner.submit(*given) for _ in range(3)]
            finally:
                torch.cuda.set_sync_debug_mode("default")
            for result in (wait() for wait in waits):
                for name in ("dense", "colbert"):
                    a, b = getattr(before, name), getattr(result, name)
                    assert (a is None and b is None) or torch.equal(a, b)


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
def test_a_failed_capture_leaves_nothing_behind(path, rng, monkeypatch) -> None:
    """Neither of torch's allocators nor its random numbers go on as if it lasted."""

    def pools() -> set[tuple[int, int]]:
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return {tuple(part["segment_pool_id"]) for part in torch.cuda.memory_snapshot()}

    compute = GpuRunner._compute

    def waits(self, *given) -> None:
        compute(self, *given)
        if torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize()

    ours, other = (Engine.from_pretrained(path, device="cuda") for _ in range(2))
    ids = random_ids(rng, TINY_VOCAB, 4, 30)
    expected = ours.encode(ids)
    before = pools()
    with monkeypatch.context() as patch:
        patch.setattr(GpuRunner, "_compute", waits)
        with pytest.warns(RuntimeWarning, match="no CUDA graph for"):
            same(expected, ours.encode(ids))
    assert pools() <= before | {(0, 0)}
    # A block that another stream has used is free once that stream is done.
    torch.cuda.synchronize()
    side, held = torch.cuda.Stream(), torch.cuda.memory_allocated()
    x = torch.empty(1 << 22, device="cuda")
    x.record_stream(side)
    del x
    torch.cuda.synchronize()
    torch.empty(1, device="cuda")
    assert torch.cuda.memory_allocated() == held
    torch.randn(4, device="cuda")
    pinned = torch.ones(1 << 20, pin_memory=True)
    assert pinned.to("cuda", non_blocking=True).sum() == 1 << 20
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            same(expected, ours.encode(ids))
            same(expected, other.encode(ids))
    assert (len(ours.runner.graphs), len(other.runner.graphs)) == (0, 1)


@pytest.mark.gpu
def test_8192_tokens(big, rng) -> None:
    ours = Engine.from_pretrained(big, device="cuda")
    ids = random_ids(rng, TINY_VOCAB, 3, 50)
    (long,) = ids_of(rng, TINY_VOCAB, [8192])
    alone, among = ours.encode([long]), ours.encode([*ids, long])
    assert (alone.dense[0] * among.dense[3]).sum() > 0.999
    assert len(alone.colbert[0]) == 8191


@pytest.mark.gpu
def test_no_memory_growth(path, rng) -> None:
    ours = Engine.from_pretrained(path, device="cuda")
    ours.warmup()
    ids = random_ids(rng, TINY_VOCAB, 200, 60)
    for text in ids:
        ours.encode([text])
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    for i in range(10_000):
        ours.encode([ids[i % 200]])
    torch.cuda.synchronize()
    assert (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) == before


@pytest.mark.gpu
def test_no_compilation_after_warmup(big, rng, monkeypatch) -> None:
    import triton

    ours = Engine.from_pretrained(big, device="cuda")
    ours.warmup()
    compiled = []

    def count(*args, **kwargs):
        compiled.append(kwargs.get("repr", args))

    monkeypatch.setattr(triton.knobs.runtime, "jit_cache_hook", count)
    for _ in range(300):
        longest = int(rng.choice([8, 20, 60, 128, 500]))
        ours.encode(random_ids(rng, TINY_VOCAB, int(rng.integers(1, 60)), longest))
    assert not compiled


@pytest.mark.gpu
def test_peak_memory_of_32k_tokens(tmp_path) -> None:
    """Weights and 0.8 GB, what buckets hold among it, at BGE-M3's width; layers share buffers."""
    folder = make_checkpoint(
        tmp_path, hidden=1024, heads=16, ffn=4096, layers=4, positions=8194, colbert_dim=1024
    )
    ours = Engine.from_pretrained(folder, device="cuda", dtype="bfloat16")
    weights = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for texts in (1, 16, 64):
        ours.encode([[0, *[9] * 510, 2]] * texts)
    assert torch.cuda.max_memory_allocated() - weights <= 0.8e9


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
