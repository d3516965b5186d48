"""An async engine is started once, and closed with or without its requests answered."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from asyncruns import busy, held, until
from checkpoints import TEXTS
from faults import Spy

from m3fast import InputError
from m3fast.aio.engine import AsyncEngine, Limits
from m3fast.errors import (
    EngineClosedError,
)


def test_close_answers_what_was_admitted(engine) -> None:
    spy = Spy(engine.runner)

    async def main() -> None:
        serving = await AsyncEngine(engine).__aenter__()
        with held(spy):
            tasks = [asyncio.create_task(serving.encode(TEXTS)) for _ in range(5)]
            await busy(spy)
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
            await busy(spy)
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
