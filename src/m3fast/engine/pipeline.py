"""Batches of one call through the runners: several in flight on each, every one answered once.

A runner's `submit` starts a batch and returns what waits for its result. While a GPU computes one
batch, the next is packed and uploaded, and the one before is downloaded and put in place.
"""

from __future__ import annotations

import _thread
import queue
import threading
import time
import warnings
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from m3fast.runner.base import BatchResult, HeadOptions, Outputs
    from m3fast.runner.cpu import Runner
    from m3fast.types import Selection

    Answer = tuple["Task", BatchResult | Exception]


@dataclass(frozen=True, slots=True)
class Task:
    """The texts of all parts, to be encoded as one batch.

    Attributes:
        owner: what its maker wants back with the result.
        start: texts that stood before these in the batch which was split, if one was.
    """

    parts: Sequence[Selection]
    outputs: Outputs
    options: HeadOptions
    owner: Any
    start: int = 0

    def __len__(self) -> int:
        return sum(map(len, self.parts))


def run(runners: Sequence[Runner], tasks: Iterable[Task]) -> Iterator[tuple[Task, BatchResult]]:
    """Each task with its result: in order from one runner, as they come from several.

    Several runners take tasks from one queue, in a thread each, so that a slow device holds
    nobody up. What one of them raises is raised here, once all have stopped.
    """
    if len(runners) == 1:
        yield from _raising(pump(runners[0], tasks))
        return
    # Only what is written in C meets both sides here: an exception from a signal handler, which
    # strikes the caller anywhere, would leave the lock of a queue.Queue, an Event or a Thread that
    # is starting as it was.
    source, lock, stopped = iter(tasks), threading.Lock(), list[bool]()
    answers: queue.SimpleQueue[tuple[Task, BatchResult] | BaseException | None]
    room: queue.SimpleQueue[None]  # as many as may be put before the first is taken
    answers, room = queue.SimpleQueue(), queue.SimpleQueue()
    begun: list[Runner] = []
    ended: list[Runner] = []
    for _ in runners:
        room.put(None)

    def take() -> Iterator[Task]:
        while not stopped:
            with lock:
                task = next(source, None)
            if task is None:
                return
            yield task

    def work(runner: Runner) -> None:
        begun.append(runner)
        try:
            for answer in _raising(pump(runner, take())):
                while not (stopped or _taken(room)):
                    pass
                answers.put(answer)
        except BaseException as error:  # whatever it is, the caller gets it
            stopped.append(True)
            answers.put(error)
        ended.append(runner)
        answers.put(None)

    working, failure = len(runners), None
    try:
        for runner in runners:
            _thread.start_new_thread(work, (runner,))
        while working:
            answer = answers.get()
            if answer is None:
                working -= 1
            elif isinstance(answer, BaseException):
                failure = failure or answer
            else:
                room.put(None)
                if failure is None:
                    yield answer
    finally:
        stopped.append(True)  # the caller may have left early
        while len(ended) < len(begun):
            time.sleep(0.001)
    if failure is not None:
        raise failure


def _taken(room: queue.SimpleQueue[None]) -> bool:
    try:
        room.get(timeout=0.05)
    except queue.Empty:
        return False
    return True


def _raising(answers: Iterable[Answer]) -> Iterator[tuple[Task, BatchResult]]:
    for task, result in answers:
        if isinstance(result, Exception):
            raise result
        yield task, result


def pump(runner: Runner, tasks: Iterable[Task | None]) -> Iterator[Answer]:
    """Each task with its result, or with the exception that it alone ends with, in order.

    A batch that does not fit into memory comes back in parts: tasks of fewer texts each, and
    torch.OutOfMemoryError with a text that does not fit alone.

    Args:
        tasks: None among them says that nothing is there to be started now, so that what is in
            flight is waited for.
    """
    flying: deque[tuple[Task, Callable[[], BatchResult]]] = deque()
    for task in tasks:
        todo = [] if task is None else [task]
        while todo:
            task = todo.pop()
            try:
                result = runner.submit(task.parts, task.outputs, task.options)
            except torch.OutOfMemoryError as error:
                # Batches in flight hold memory too: once they are done the same one may fit.
                landed = [_landed(*each) for each in flying]
                flying.clear()
                runner.free()
                if landed or len(task) > 1:
                    todo += [task] if landed else _halves(task)
                else:
                    landed = [(task, error)]
                yield from landed
            except Exception as error:
                yield task, error
            else:
                flying.append((task, result))
        while flying and (task is None or len(flying) > runner.in_flight):
            yield _landed(*flying.popleft())
    while flying:
        yield _landed(*flying.popleft())


def _landed(task: Task, wait: Callable[[], BatchResult]) -> Answer:
    try:
        return task, wait()
    except Exception as error:
        return task, error


def _halves(task: Task) -> list[Task]:
    """Two tasks of about as many tokens each, the first one last."""
    lengths = np.concatenate([part.lengths for part in task.parts])
    warnings.warn(
        f"out of memory for {len(lengths)} texts of {lengths.sum()} tokens: the batch is split; "
        "a smaller token_budget avoids it",
        RuntimeWarning,
        stacklevel=2,
    )
    middle = int(np.searchsorted(np.cumsum(lengths), lengths.sum() / 2))
    middle = min(max(1, middle), len(lengths) - 1)
    first: list[Selection] = []
    second: list[Selection] = []
    at = 0
    for part in task.parts:
        for half, order in (
            (first, part.order[: max(0, middle - at)]),
            (second, part.order[max(0, middle - at) :]),
        ):
            if len(order):
                half.append(replace(part, order=order))
        at += len(part)
    return [replace(task, parts=second, start=task.start + middle), replace(task, parts=first)]
