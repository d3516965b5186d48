"""The async engine: same values as the engine's, and nobody is lost, whatever happens."""

from __future__ import annotations

import asyncio
import threading
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import TEXTS, make_checkpoint
from nearness import same
from servers import PATIENCE

from m3fast import Engine, InputError
from m3fast.aio.engine import AsyncEngine, Limits
from m3fast.errors import (
    ComputeError,
    DeadlineError,
    DeviceMemoryError,
    EngineClosedError,
    OverloadedError,
    TextSizeError,
)
from m3fast.kernels import native


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"), seed=7)


@pytest.fixture
def engine(path) -> Engine:
    return Engine.from_pretrained(path, device="cpu", dtype="float32", token_budget=200)


class Spy:
    """Sees what a runner is given, can hold it back, and can make it fail."""

    def __init__(self, runner) -> None:
        self._submit = runner.submit
        runner.submit = self.submit
        self.batches: list[tuple[list[int], object]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.fail = None  # called with the batch's lengths, may raise

    def submit(self, parts, outputs, options):
        lengths = [int(n) for part in parts for n in part.lengths]
        self.batches.append((lengths, outputs))
        self.entered.set()
        assert self.gate.wait(PATIENCE)
        if self.fail is not None:
            self.fail(lengths)
        return self._submit(parts, outputs, options)

    async def busy(self) -> None:
        await asyncio.to_thread(self.entered.wait, PATIENCE)


@contextmanager
def held(spy: Spy):
    """The device is busy with whatever comes first, for as long as this lasts."""
    spy.entered.clear()
    spy.gate.clear()
    try:
        yield
    finally:
        spy.gate.set()


async def until(check) -> None:
    """Wait for what another thread does; `run` has an end."""
    while not check():
        await asyncio.sleep(0.005)


def run(engine: Engine, use, **limits):
    """`await use(serving)`, in a loop of its own and with an end."""

    async def main():
        # One batch at a time, so that what waits waits; side by side has a test of its own.
        chosen = Limits(**{"cpu_batches": 1, **limits})
        async with AsyncEngine(engine, limits=chosen) as serving:
            return await asyncio.wait_for(use(serving), PATIENCE)

    return asyncio.run(main())


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
            await spy.busy()
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
            await spy.busy()
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
            await spy.busy()
            tasks.append(asyncio.create_task(ask("bulk", ["word " * 60] * 20)))
            await until(lambda: serving.load.texts == 20)
            tasks.append(asyncio.create_task(ask("query", "What is BGE M3?")))
            await until(lambda: serving.load.texts == 21)
        await asyncio.gather(*tasks)

    run(engine, use)
    assert order == ["first", "query", "bulk"]


def test_cancelled_work_is_not_run(engine) -> None:
    spy = Spy(engine.runner)

    async def use(serving):
        with held(spy):
            first = asyncio.create_task(serving.encode("x"))
            await spy.busy()
            gone = asyncio.create_task(serving.encode(["word " * 30] * 5))
            await until(lambda: serving.load.texts == 5)
            gone.cancel()
            with pytest.raises(asyncio.CancelledError):
                await gone
            assert serving.load.texts == 0
        await first
        assert serving.load.tokens == 0

    run(engine, use)
    assert len(spy.batches) == 1


def test_a_deadline_ends_the_wait_and_the_work(engine) -> None:
    spy = Spy(engine.runner)

    async def use(serving):
        with held(spy):
            first = asyncio.create_task(serving.encode("x"))
            await spy.busy()
            with pytest.raises(DeadlineError, match=r"no answer within 0\.05 s"):
                await serving.encode("y", timeout=0.05)
        await first
        with pytest.raises(InputError, match="timeout: expected seconds above 0, found 0"):
            await serving.encode("y", timeout=0)
        assert serving.load.tokens == 0

    run(engine, use)
    assert len(spy.batches) == 1


def test_past_the_limit_it_is_overloaded_and_recovers(engine) -> None:
    spy = Spy(engine.runner)

    async def use(serving):
        with held(spy):
            first = asyncio.create_task(serving.encode(["a b c d"] * 80))
            await spy.busy()
            with pytest.raises(OverloadedError) as full:
                await serving.encode(["a b c d"] * 80)
            assert full.value.retry_after > 0
            assert serving.load.requests == 1
        assert len(await first) == 80
        assert len(await serving.encode(["a b c d"] * 80)) == 80
        with pytest.raises(InputError, match="expected at most 800 tokens in a request"):
            await serving.encode(["a b c d"] * 500)
        assert serving.load.tokens == 0

    run(engine, use, queue_tokens=800)


def test_an_exception_fails_its_batch_only(engine) -> None:
    spy = Spy(engine.runner)

    def fail(lengths) -> None:
        if max(lengths) > 30:
            raise RuntimeError("a user's text must not leave: secret")

    spy.fail = fail

    async def use(serving):
        for _ in range(3):
            bad, good = await asyncio.gather(
                serving.encode("word " * 60, lane="bulk"),
                serving.encode("fine", lane="query"),
                return_exceptions=True,
            )
            failed = [each for each in (bad, good) if isinstance(each, Exception)]
            assert isinstance(bad, ComputeError) and "secret" not in str(bad)
            assert isinstance(bad.__cause__, RuntimeError)
            assert len(failed) in (1, 2)  # 2: they shared the batch
        assert len(await serving.encode("fine")) == 1
        assert serving.state == "ready" and serving.load.tokens == 0

    run(engine, use)


def test_a_device_that_fails_for_good_is_dead(engine) -> None:
    spy = Spy(engine.runner)

    def fail(lengths) -> None:
        raise RuntimeError("device-side assert")

    async def use(serving):
        await serving.encode("fine")
        spy.fail = fail
        with pytest.raises(ComputeError):
            await serving.encode("x")
        await until(lambda: serving.state == "dead")
        assert "RuntimeError" in serving.reason
        with pytest.raises(EngineClosedError, match="dead"):
            await serving.encode("y")

    run(engine, use)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_worker_fails_everybody_at_once(engine) -> None:
    spy = Spy(engine.runner)

    def die(lengths) -> None:
        raise SystemExit

    async def use(serving):
        spy.fail = die
        with held(spy):
            tasks = [asyncio.create_task(serving.encode(f"{i} " * 60)) for i in range(10)]
            await spy.busy()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(each, EngineClosedError) for each in results)
        assert serving.state == "dead" and serving.load.requests == 0

    run(engine, use)


def test_a_batch_that_never_ends_counts_as_dead(engine) -> None:
    spy = Spy(engine.runner)
    now = [0.0]

    async def main() -> None:
        limits = Limits(stall=5, cpu_batches=1)
        async with AsyncEngine(engine, limits=limits, clock=lambda: now[0]) as serving:
            with held(spy):
                waiting = asyncio.create_task(serving.encode("x"))
                await spy.busy()
                assert serving.state == "ready"
                now[0] = 6.0
                assert serving.state == "dead" and "has not ended for 5 s" in serving.reason
                with pytest.raises(EngineClosedError):
                    await serving.encode("y")
            assert len(await waiting) == 1
            assert serving.state == "ready"

    asyncio.run(main())


def test_out_of_memory_splits_and_one_text_that_cannot_fit_fails_alone(engine) -> None:
    spy = Spy(engine.runner)

    def fail(lengths) -> None:
        if sum(lengths) > 60:
            raise torch.OutOfMemoryError("no room")

    async def use(serving):
        spy.fail = fail
        with held(spy), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            first = asyncio.create_task(serving.encode("x"))
            await spy.busy()
            tasks = [asyncio.create_task(serving.encode(TEXTS[:4], lane="query")) for _ in range(3)]
            tasks.append(asyncio.create_task(serving.encode("word " * 80)))
            await until(lambda: serving.load.texts == 13)
            spy.gate.set()
            await first
            return await asyncio.gather(*tasks, return_exceptions=True)

    *fine, alone = run(engine, use)
    assert isinstance(alone, DeviceMemoryError) and "does not fit the device" in str(alone)
    want = engine.encode(TEXTS[:4])
    for got in fine:
        same(got, want, 5e-6)
    assert any(sum(lengths) > 60 and len(lengths) > 1 for lengths, _ in spy.batches)


def test_close_answers_what_was_admitted(engine) -> None:
    spy = Spy(engine.runner)

    async def main() -> None:
        serving = await AsyncEngine(engine).__aenter__()
        with held(spy):
            tasks = [asyncio.create_task(serving.encode(TEXTS)) for _ in range(5)]
            await spy.busy()
            closing = asyncio.create_task(serving.close())
            await until(lambda: serving.state == "closing")
            with pytest.raises(EngineClosedError, match="closing"):
                await serving.encode("late")
        await closing
        assert all(len(each) == len(TEXTS) for each in await asyncio.gather(*tasks))
        assert serving.state == "closed"

    asyncio.run(main())


def test_close_without_draining_fails_what_waits(engine) -> None:
    spy = Spy(engine.runner)

    async def main() -> None:
        serving = await AsyncEngine(engine).__aenter__()
        with held(spy):
            tasks = [asyncio.create_task(serving.encode(["word " * 60] * 9)) for _ in range(3)]
            await spy.busy()
            closing = asyncio.create_task(serving.close(drain=False))
            results = await asyncio.gather(*tasks, return_exceptions=True)
        await closing
        assert all(isinstance(each, EngineClosedError) for each in results)

    before = threading.active_count()
    asyncio.run(main())
    end = time.monotonic() + 10  # a pool's threads end a moment after it is shut
    while threading.active_count() > before:
        assert time.monotonic() < end, threading.enumerate()
        time.sleep(0.01)


def test_bad_requests_are_refused_before_they_are_queued(engine) -> None:
    spy = Spy(engine.runner)

    async def use(serving):
        for texts, options, message in (
            (["a", None], {}, r"texts\[1\]: expected a str"),
            (["a"] * 5, {}, "texts: expected at most 4, found 5"),
            (["a\ud800"], {}, "lone surrogate"),
            (["a b c d e f g"], {"max_length": 4, "truncate": False}, r"texts\[0\]: .* 4 tokens"),
            (["a"], {"lane": "fast"}, "lane: expected"),
            (["a"], {"dense": False, "sparse": False, "colbert": False}, "at least one"),
            (["word " * 200], {"colbert": True}, "colbert: expected at most 20000 bytes"),
        ):
            with pytest.raises(InputError, match=message):
                await serving.encode(texts, **options)
        assert serving.load.tokens == 0
        empty = await serving.encode([])
        assert empty.dense.shape == (0, 40)

    run(engine, use, request_texts=4, output_bytes=20_000)
    assert not spy.batches


def test_texts_that_cost_too_much_are_refused_and_leave_nothing(engine) -> None:
    """The engine itself, without a queue of others, takes its time for them."""

    async def use(serving):
        for texts in (" " * 100_000, ["ok", "\n" * 100_000]):
            with pytest.raises(TextSizeError, match=r"^texts\[[01]\]: expected a place to cut it"):
                await serving.encode(texts, max_length=16)
        with pytest.raises(TextSizeError, match=r"^texts: expected at most 200000 characters"):
            await serving.encode(["the fox " * 50] * 600, max_length=512)
        assert serving.load.tokens == 0 and serving.load.requests == 0
        return await serving.encode(TEXTS)

    limits = {"text_characters": 10_000, "request_characters": 200_000, "request_texts": 600}
    same(run(engine, use, **limits), engine.encode(TEXTS), 5e-6)
    assert len(engine.encode(" " * 100_000, max_length=16)) == 1


def test_an_id_the_model_has_no_row_for_hurts_nobody_else(tmp_path) -> None:
    path = make_checkpoint(tmp_path / "model", vocab=7000)  # the tokenizer knows more
    engine = Engine.from_pretrained(path, device="cpu", dtype="float32")

    async def use(serving):
        return await asyncio.gather(
            serving.encode([[0, 7500, 2]]), serving.encode([[0, 50, 2]]), return_exceptions=True
        )

    bad, good = run(engine, use)
    assert isinstance(bad, InputError) and "below 7000, found 7500" in str(bad)
    assert len(good) == 1


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
                await spy.busy()
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


def test_a_storm_leaves_nothing_behind(engine) -> None:
    """Random sizes, lanes, deadlines and cancellations: one outcome each, and an empty queue."""
    rng = np.random.default_rng(7)
    outcomes = {"answered": 0, "cancelled": 0, "late": 0, "overloaded": 0}

    async def use(serving):
        async def one() -> None:
            texts = [TEXTS[i] for i in rng.integers(0, len(TEXTS), rng.integers(1, 12))]
            timeout = float(rng.choice([0.002, 0.05, 30]))
            call = asyncio.create_task(serving.encode(texts, timeout=timeout))
            if rng.random() < 0.2:
                await asyncio.sleep(float(rng.random()) * 0.02)
                call.cancel()
            try:
                assert len(await call) == len(texts)
                outcomes["answered"] += 1
            except asyncio.CancelledError:
                outcomes["cancelled"] += 1
            except DeadlineError:
                outcomes["late"] += 1
            except OverloadedError:
                outcomes["overloaded"] += 1

        await asyncio.gather(*(one() for _ in range(500)))
        await serving.encode("x")
        assert serving.load.tokens == 0 and serving.load.requests == 0
        assert not serving._open

    run(engine, use, queue_tokens=20_000)
    assert sum(outcomes.values()) == 500 and outcomes["answered"] > 0


def test_started_once(engine) -> None:
    async def main() -> None:
        serving = AsyncEngine(engine)
        with pytest.raises(EngineClosedError, match="it is new"):
            await serving.encode("x")
        async with serving:
            pass
        with pytest.raises(EngineClosedError, match="found one that is closed"):
            async with serving:
                pass
        with pytest.raises(InputError, match="queue_tokens: expected a positive integer"):
            AsyncEngine(engine, limits=Limits(queue_tokens=0))

    asyncio.run(main())
