"""The async engine: the same values as the engine, in batches that requests share."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from asyncruns import busy, held, run, until
from checkpoints import TEXTS
from faults import Spy
from nearness import same

from m3fast import Engine, InputError
from m3fast.aio.engine import AsyncEngine
from m3fast.kernels import native
from m3fast.kernels.packing import pack_parts


def test_any_mix_of_requests_equals_the_engine(engine) -> None:
    rng = np.random.default_rng(7)
    asked = []
    for _ in range(60):
        texts = [TEXTS[i] for i in rng.integers(0, len(TEXTS), rng.integers(1, 9))]
        flags = dict(zip(("dense", "sparse", "colbert"), map(bool, rng.integers(0, 2, 3)),
                         strict=True))  # fmt: skip
        flags = flags if any(flags.values()) else {"dense": True, "sparse": False, "colbert": False}
        flags["truncate_dim"] = [None, None, 7][rng.integers(0, 3)]
        flags["normalize"] = [None, None, False][rng.integers(0, 3)]
        flags["max_length"] = [None, 5][rng.integers(0, 2)]
        asked.append((texts, flags))

    async def use(serving):
        with held(spy):
            tasks = [asyncio.create_task(serving.encode(t, **flags)) for t, flags in asked]
            await busy(spy)
            begun = len(spy.batches[0][0])
            await until(lambda: serving.load.texts + begun == sum(len(t) for t, _ in asked))
        return await asyncio.gather(*tasks)

    spy = Spy(engine.runner)
    found = run(engine, use)
    assert len(spy.batches) < len(asked), "requests share batches"
    assert all(sum(lengths) <= 200 or len(lengths) == 1 for lengths, _ in spy.batches)
    for (texts, flags), got in zip(asked, found, strict=True):
        want = engine.encode(texts, **flags)
        for name in ("dense", "sparse", "colbert"):
            assert (getattr(got, name) is None) == (not flags[name])
        if flags["dense"]:
            np.testing.assert_allclose(got.dense, want.dense, rtol=0, atol=5e-6)
        if flags["sparse"]:
            np.testing.assert_array_equal(got.sparse.indptr, want.sparse.indptr)
            np.testing.assert_array_equal(got.sparse.indices, want.sparse.indices)
            np.testing.assert_allclose(got.sparse.values, want.sparse.values, rtol=0, atol=5e-6)
            assert got.sparse.values.base is None, "no request keeps another's rows"
        if flags["colbert"]:
            np.testing.assert_array_equal(got.colbert.offsets, want.colbert.offsets)
            np.testing.assert_allclose(got.colbert.values, want.colbert.values, rtol=0, atol=5e-6)
        np.testing.assert_array_equal(got.n_tokens, want.n_tokens)
        np.testing.assert_array_equal(got.truncated, want.truncated)


def test_a_mixed_batch_computes_what_somebody_wants_and_no_more(engine) -> None:
    spy = Spy(engine.runner)

    async def use(serving):
        with held(spy):
            first = asyncio.create_task(serving.encode("x", sparse=False, colbert=False))
            await busy(spy)
            rest = [
                asyncio.create_task(serving.encode("y", sparse=False, colbert=False)),
                asyncio.create_task(serving.encode("z", dense=False, colbert=False)),
            ]
            await until(lambda: serving.load.texts == 2)
        return await asyncio.gather(first, *rest)

    _, dense, sparse = run(engine, use)
    (_, first), (lengths, second) = spy.batches
    assert (first.dense, first.sparse, first.colbert) == (True, False, False)
    assert len(lengths) == 2
    assert (second.dense, second.sparse, second.colbert) == (True, True, False)
    assert dense.sparse is None and sparse.dense is None


def test_a_query_goes_ahead_of_bulk_that_was_first(engine) -> None:
    spy = Spy(engine.runner)
    order = []

    async def use(serving):
        async def ask(name, texts, **options):
            await serving.encode(texts, **options)
            order.append(name)

        with held(spy):
            tasks = [asyncio.create_task(ask("first", "x"))]
            await busy(spy)
            tasks.append(asyncio.create_task(ask("bulk", ["word " * 60] * 20)))
            await until(lambda: serving.load.texts == 20)
            tasks.append(asyncio.create_task(ask("query", "What is BGE M3?")))
            await until(lambda: serving.load.texts == 21)
        await asyncio.gather(*tasks)

    run(engine, use)
    assert order == ["first", "query", "bulk"]


def test_batches_side_by_side_share_the_threads(engine) -> None:
    """One alone has them all; while others wait each has its part, and all are equal."""
    spy = Spy(engine.runner)
    seen = []
    spy.fail = lambda lengths: seen.append(native.threads())

    async def use(serving):
        await serving.encode("x")
        with held(spy):
            tasks = [asyncio.create_task(serving.encode(TEXTS)) for _ in range(6)]
            await until(lambda: len(spy.batches) >= 1 + 3)
            await asyncio.sleep(0.05)
            assert len(spy.batches) == 1 + 3
        return await asyncio.gather(*tasks)

    native.limit_threads(3)
    try:
        found = run(engine, use, cpu_batches=None)
    finally:
        native.limit_threads(0)
    assert seen[:4] == [3, 1, 1, 1]
    want = engine.encode(TEXTS)
    for got in found:
        same(got, want, 5e-6)


def test_two_devices_share_the_queue(path) -> None:
    pair = Engine.from_pretrained(path, device=["cpu", "cpu"], dtype="float32", token_budget=60)
    spies = [Spy(runner) for runner in pair.runners]

    async def use(serving):
        with held(spies[0]), held(spies[1]):
            tasks = [asyncio.create_task(serving.encode(TEXTS * 3)) for _ in range(3)]
            for spy in spies:
                await busy(spy)
        return await asyncio.gather(*tasks)

    want = pair.encode(TEXTS * 3)
    for spy in spies:
        spy.batches.clear()
    for got in run(pair, use):
        same(got, want, 5e-6)
    assert all(spy.batches for spy in spies)


def test_streaming_keeps_order_reads_little_ahead_and_waits_for_room(engine, monkeypatch) -> None:
    monkeypatch.setattr("m3fast.aio.engine.ITER_TEXTS", 10)
    read = []

    def source():
        for i in range(200):
            read.append(i)
            yield f"text {i}"

    async def use(serving):
        parts, ahead = [], 0
        async for part in serving.encode_iter(source()):
            parts.append(part.dense)
            ahead = max(ahead, len(read) - sum(map(len, parts)))
        assert ahead <= 40
        with pytest.raises(InputError, match="single str"):
            async for _ in serving.encode_iter("no"):
                pass
        assert serving.load.tokens == 0
        return np.concatenate(parts)

    want = engine.encode([f"text {i}" for i in range(200)]).dense
    np.testing.assert_allclose(run(engine, use, queue_tokens=150), want, rtol=0, atol=5e-6)


def test_loops_of_several_threads_share_an_engine(engine) -> None:
    async def main() -> None:
        async with AsyncEngine(engine) as serving:

            async def use():
                return await asyncio.gather(*(serving.encode(TEXTS) for _ in range(5)))

            found = await asyncio.gather(
                *(asyncio.to_thread(asyncio.run, use()) for _ in range(3)), use()
            )
            want = engine.encode(TEXTS)
            for got in (each for part in found for each in part):
                same(got, want, 5e-6)

            async def leave():
                task = asyncio.create_task(serving.encode(TEXTS))
                await asyncio.sleep(0)
                return task

            await asyncio.to_thread(asyncio.run, leave())  # that loop is gone
            assert len(await serving.encode("still here")) == 1

    asyncio.run(main())


def test_ids_are_copied_once(engine, monkeypatch) -> None:
    """The packer is given the arrays that the tokenizer made, of every request in a batch."""
    made, packed = [], []
    encode = engine.tokenizer.encode

    def keep(*args):
        made.append(encode(*args))
        return made[-1]

    def pack(parts, *args, **options):
        packed.append([ids for ids, _, _ in parts])
        return pack_parts(parts, *args, **options)

    monkeypatch.setattr(engine.tokenizer, "encode", keep)
    monkeypatch.setattr("m3fast.model.packing.pack_parts", pack)
    spy = Spy(engine.runner)

    async def use(serving):
        with held(spy):  # what comes behind the first request runs as one batch
            tasks = [asyncio.create_task(serving.encode("first", lane="bulk"))]
            await busy(spy)
            for texts in (["a", "b c d"], ["e"], ["f g", "h"]):
                tasks.append(asyncio.create_task(serving.encode(texts, lane="bulk")))
            await until(lambda: serving.load.texts == 5)
        await asyncio.gather(*tasks)

    run(engine, use)
    assert [len(parts) for parts in packed] == [1, 3]
    assert len(made) == 4
    assert {id(ids) for parts in packed for ids in parts} == {id(each.ids) for each in made}
