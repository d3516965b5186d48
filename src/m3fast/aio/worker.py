"""The thread that keeps one device busy with batches of many requests."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Protocol

import torch

from m3fast.aio.batches import SharedBatch
from m3fast.engine import pipeline
from m3fast.errors import ComputeError, DeviceMemoryError
from m3fast.runner.base import HeadOptions, Outputs, dummy_texts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from m3fast.aio.batches import Request
    from m3fast.aio.lanes import Job, Part
    from m3fast.runner.cpu import Runner


class Owner(Protocol):
    """Who says what a worker does next, and hears what came of it."""

    def next_batch(self, worker: Worker) -> list[Part[Request]] | None: ...
    def landed(
        self, worker: Worker, parts: Sequence[Part[Request]], error: Exception | None, last: bool
    ) -> None: ...
    def failed(self, job: Job[Request], error: Exception) -> None: ...
    def died(self, worker: Worker, error: BaseException) -> None: ...


class Worker:
    """Takes batches of its owner, has its runner compute them, reports what came of each.

    Attributes:
        flying: batches begun and not landed; since: when the device began on the oldest.
    """

    def __init__(self, owner: Owner, runner: Runner) -> None:
        self._owner, self.runner = owner, runner
        self.flying, self.since = 0, 0.0
        self.thread = threading.Thread(
            target=self._main, name=f"m3fast-{runner.device}", daemon=True
        )

    def _main(self) -> None:
        try:
            for task, result in pipeline.pump(self.runner, self._tasks()):
                if isinstance(result, Exception):
                    self._failed(task, result)
                    continue
                for job, error in task.owner.put(task, result):
                    self._owner.failed(job, error)
                self._landed(task, None)
        except BaseException as error:
            self._owner.died(self, error)
            if not isinstance(error, Exception):
                raise

    def _tasks(self) -> Iterator[pipeline.Task | None]:
        while (parts := self._owner.next_batch(self)) is not None or self.flying:
            yield None if parts is None else SharedBatch(parts).task()

    def _landed(self, task: pipeline.Task, error: Exception | None) -> None:
        batch: SharedBatch = task.owner
        batch.missing -= len(task)
        self._owner.landed(self, batch.parts_of(task), error, batch.missing == 0)

    def _failed(self, task: pipeline.Task, cause: Exception) -> None:
        error: ComputeError
        if isinstance(cause, torch.OutOfMemoryError):
            tokens = sum(int(part.lengths.sum()) for part in task.parts)
            error = DeviceMemoryError(f"texts: one of {tokens} tokens does not fit the device")
        else:
            error = ComputeError(f"the batch failed: {type(cause).__name__}")
        error.__cause__ = cause
        self._landed(task, error)
        if not isinstance(error, DeviceMemoryError):
            # Some failures stay with a device for good. If it cannot do this it is dead.
            plain = HeadOptions("cls", True, None, ())
            self.runner.submit(dummy_texts(4, 4), Outputs(True, False, False), plain)()
