"""Batches of one call through the runners: several in flight on each, every one answered once.

A runner's `submit` starts a batch and returns what waits for its result. While a GPU computes one
batch, the next is packed and uploaded, and the one before is downloaded and put in place.
"""

from __future__ import annotations

import queue
import threading
import warnings
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from m3fast.assembly import Window
    from m3fast.runner import BatchResult, HeadOptions, Outputs, Runner

    Answer = tuple["Task", BatchResult]


@dataclass(frozen=True, slots=True)
class Task:
    """Texts `order` of a window, to be encoded as one batch."""

    window: Window
    order: NDArray[np.int64]


def run(
    runners: Sequence[Runner], tasks: Iterable[Task], outputs: Outputs, options: HeadOptions
) -> Iterator[Answer]:
    """Each task with its result: in order from one runner, as they come from several.

    Several runners take tasks from one queue, in a thread each, so that a slow device holds
    nobody up. What one of them raises is raised here, once all have stopped.
    """
    if len(runners) == 1:
        yield from _pump(runners[0], tasks, outputs, options)
        return
    source, lock, stop = iter(tasks), threading.Lock(), threading.Event()
    answers: queue.Queue[Answer | BaseException | None] = queue.Queue(len(runners))

    def take() -> Iterator[Task]:
        while not stop.is_set():
            with lock:
                task = next(source, None)
            if task is None:
                return
            yield task

    def work(runner: Runner) -> None:
        try:
            for answer in _pump(runner, take(), outputs, options):
                answers.put(answer)
        except BaseException as error:  # whatever it is, the caller gets it
            stop.set()
            answers.put(error)
        answers.put(None)

    threads = [threading.Thread(target=work, args=(r,), daemon=True) for r in runners]
    for thread in threads:
        thread.start()
    working, failure = len(threads), None
    try:
        while working:
            answer = answers.get()
            if answer is None:
                working -= 1
            elif isinstance(answer, BaseException):
                failure = failure or answer
            elif failure is None:
                yield answer
    finally:
        stop.set()
        while working:  # the caller left early: a worker may be waiting for room in the queue
            working -= answers.get() is None
        for thread in threads:
            thread.join()
    if failure is not None:
        raise failure


def _pump(
    runner: Runner, tasks: Iterable[Task], outputs: Outputs, options: HeadOptions
) -> Iterator[Answer]:
    flying: deque[tuple[Task, Callable[[], BatchResult]]] = deque()
    for task in tasks:
        todo = [task]
        while todo:
            task = todo.pop()
            try:
                result = runner.submit(task.window.tokens, task.order, outputs, options)
            except torch.OutOfMemoryError:
                # Batches in flight hold memory too: once they are done the same one may fit.
                landed = [(t, wait()) for t, wait in flying]
                flying.clear()
                runner.free()
                if not landed and len(task.order) == 1:
                    raise
                todo += [task] if landed else _halves(task)
                yield from landed
                continue
            flying.append((task, result))
        while len(flying) > runner.in_flight:
            done, wait = flying.popleft()
            yield done, wait()
    while flying:
        done, wait = flying.popleft()
        yield done, wait()


def _halves(task: Task) -> list[Task]:
    """Two tasks of about as many tokens each, the first one last."""
    lengths = np.diff(task.window.tokens.offsets)[task.order]
    warnings.warn(
        f"out of memory for {len(task.order)} texts of {lengths.sum()} tokens: the batch is split; "
        "a smaller token_budget avoids it",
        RuntimeWarning,
        stacklevel=2,
    )
    middle = int(np.searchsorted(np.cumsum(lengths), lengths.sum() / 2))
    middle = min(max(1, middle), len(task.order) - 1)
    return [Task(task.window, task.order[middle:]), Task(task.window, task.order[:middle])]
