"""What the processes of tests/flag/test_pool.py do: they must find it by name."""

from __future__ import annotations

import os
import time
from typing import Any

from m3fast.errors import OverloadedError
from m3fast.flag.pool import serve


def echo(device: str, model: object, jobs: Any, done: Any) -> None:
    serve(jobs, done, work)


def work(items: list[Any], what: str) -> list[Any]:
    if what == "raise":
        raise OverloadedError("no room", 2.5)
    if what == "local":

        class Local(Exception):
            pass

        raise Local("words")
    if what == "exit":
        os._exit(3)
    if what == "slow":
        time.sleep(0.3)
    return [what, *items]
