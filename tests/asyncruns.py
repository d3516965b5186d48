"""An async engine in a loop of its own, and a device that tests hold back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from faults import Spy
from servers import PATIENCE

from m3fast import AsyncEngine, Engine, Limits


def run(engine: Engine, use: Callable[[AsyncEngine], Any], **limits: Any) -> Any:
    """`await use(serving)`, in a loop of its own and with an end."""

    async def main() -> Any:
        # One batch at a time, so that what waits waits; side by side has a test of its own.
        chosen = Limits(**{"cpu_batches": 1, **limits})
        async with AsyncEngine(engine, limits=chosen) as serving:
            return await asyncio.wait_for(use(serving), PATIENCE)

    return asyncio.run(main())


@contextmanager
def held(spy: Spy) -> Generator[None]:
    """The device is busy with whatever comes first, for as long as this lasts."""
    spy.hold()
    try:
        yield
    finally:
        spy.gate.set()


async def busy(spy: Spy) -> None:
    """Wait until a batch has reached the device."""
    await asyncio.to_thread(spy.busy)


async def until(check: Callable[[], bool]) -> None:
    """Wait for what another thread does; `run` has an end."""
    while not check():
        await asyncio.sleep(0.005)
