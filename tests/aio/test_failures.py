"""Batches, devices and workers that fail: who hears of it, and who goes on."""

from __future__ import annotations

import asyncio
import warnings

import numpy as np
import pytest
import torch
from asyncruns import busy, held, run, until
from checkpoints import TEXTS
from faults import Spy
from nearness import same

from m3fast.aio.engine import AsyncEngine, Limits
from m3fast.errors import (
    ComputeError,
    DeadlineError,
    DeviceMemoryError,
    EngineClosedError,
    OverloadedError,
)


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
            await busy(spy)
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
                await busy(spy)
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
            await busy(spy)
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
        assert not serving._dispatcher.jobs

    run(engine, use, queue_tokens=20_000)
    assert sum(outcomes.values()) == 500 and outcomes["answered"] > 0
