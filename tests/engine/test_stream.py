"""Where texts are tokenized: one window by the caller, several beside a GPU in a thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from m3fast.engine.stream import _tokenized

CALL: Any = SimpleNamespace(max_length=16, prompt="")


def tokenized(device: str, windows: list[str]) -> tuple[Iterator[Any], list[threading.Thread]]:
    threads: list[threading.Thread] = []

    def tokenize(part: str, max_length: int, prompt: str) -> str:
        assert (max_length, prompt) == (16, "")
        threads.append(threading.current_thread())
        if part == "bad":
            raise ValueError("bad")
        return part.upper()

    engine: Any = SimpleNamespace(device=SimpleNamespace(type=device), tokenize=tokenize)
    return _tokenized(engine, iter(windows), CALL), threads


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("windows", [[], ["a"], ["a", "b"], ["a", "b", "c", "d"]], ids=len)
def test_in_order_and_where(device: str, windows: list[str]) -> None:
    found, threads = tokenized(device, windows)
    assert list(found) == [window.upper() for window in windows]
    here = threading.current_thread()
    aside = device == "cuda" and len(windows) > 1
    assert [thread is here for thread in threads] == [not aside] * len(windows)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_an_error_comes_in_its_place(device: str) -> None:
    found, _ = tokenized(device, ["a", "bad", "c"])
    assert next(found) == "A"
    with pytest.raises(ValueError, match="bad"):
        next(found)
    alone, _ = tokenized(device, ["bad"])
    with pytest.raises(ValueError, match="bad"):
        next(alone)
