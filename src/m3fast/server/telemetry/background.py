"""`Background`: a queue and a thread for work that no request waits for."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Item = TypeVar("Item")


class Background(Generic[Item]):
    """Hands items in lists to `work` in a daemon thread; putting one in never waits.

    Attributes:
        dropped: items refused because `limit` of them were waiting, or because it was closed.
    """

    def __init__(
        self, name: str, work: Callable[[list[Item]], None], *, limit: int, pause: float = 0.05
    ) -> None:
        """
        Args:
            work: gets all items that wait, in order. An exception in it ends the thread.
            limit: most items that wait.
            pause: seconds to let items gather between two calls, so that a busy server is not
                interrupted for each one.
        """
        self._queue: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._work, self._limit, self._pause = work, limit, pause
        self._closing = threading.Event()
        self._count = threading.Lock()
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, item: Item) -> bool:
        """Queue an item; False where it was dropped."""
        if self._queue.qsize() >= self._limit or self._closing.is_set():
            self.drop()
            return False
        self._queue.put(item)
        return True

    def drop(self, items: int = 1) -> None:
        """Count items as lost."""
        with self._count:
            self.dropped += items

    @property
    def closing(self) -> bool:
        return self._closing.is_set()

    def close(self, seconds: float) -> bool:
        """Take no more and finish the rest; False where that took longer than `seconds`."""
        if not self._closing.is_set():
            self._closing.set()
            self._queue.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            items = [self._queue.get()]
            while len(items) < self._limit:
                try:
                    items.append(self._queue.get_nowait())
                except queue.Empty:
                    break
            found = [item for item in items if item is not None]
            if found:
                self._work(found)
            if len(found) < len(items):
                return
            self._closing.wait(self._pause)
