"""Threads that cannot be ended: one that loads a model, and those that compute."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")
# How the names of these threads begin.
NAMES = ("m3fast-load", "m3fast-cpu", "m3fast-cuda")


async def in_daemon_thread(call: Callable[[], Result]) -> Result:
    """The result of `call`, made in a thread for which the end of the process does not wait.

    `asyncio.to_thread` has threads for which it does.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Result] = loop.create_future()

    def succeed(result: Result) -> None:
        if not done.done():
            done.set_result(result)

    def fail(error: BaseException) -> None:
        if not done.done():
            done.set_exception(error)

    def work() -> None:
        try:
            result = call()
        except BaseException as error:  # whatever it is, it ends the server
            _tell(loop, fail, error)
        else:
            _tell(loop, succeed, result)

    threading.Thread(target=work, name=NAMES[0], daemon=True).start()
    return await done


def _tell(loop: asyncio.AbstractEventLoop, settle: Callable[[Result], None], what: Result) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(settle, what)


def any_running() -> bool:
    """Whether such a thread still runs."""
    return any(thread.name.startswith(NAMES) for thread in threading.enumerate())
