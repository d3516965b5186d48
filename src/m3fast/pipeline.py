"""Batches of one call through the runners: several in flight on each, every one answered once.

A runner's `submit` starts a batch and returns what waits for its result. While a GPU computes one
batch, the next is packed and uploaded, and the one before is downloaded and put in place.
"""

from __future__ import annotations

import queue
import threading
import warnings
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from m3fast.runner import BatchResult, HeadOptions, Outputs, Runner
    from m3fast.tokenizer import TokenIds

    Answer = tuple["Task", BatchResult | Exception]


@dataclass(frozen=True, slots=True)
class Task:
    """Texts `order` of `tokens`, to be encoded as one batch.

    Attributes:
        owner: what its maker wants back with the result.
    """

    tokens: TokenIds
    order: NDArray[np.int64]
    outputs: Outputs
    options: HeadOptions
    owner: Any


def run(runners: Sequence[Runner], tasks: Iterable[Task]) -> Iterator[tuple[Task, BatchResult]]:
    """Each task with its result: in order from one runner, as they come from several.

    Several runners take tasks from one queue, in a thread each, so that a slow device holds
    nobody up. What one of them raises is raised here, once all have stopped.
    """
    if len(runners) == 1:
        yield from _raising(pump(runners[0], tasks))
        return
    source, lock, stop = iter(tasks), threading.Lock(), threading.Event()
    answers: queue.Queue[tuple[Task, BatchResult] | BaseException | None]
    answers = queue.Queue(len(runners))

    def take() -> Iterator[Task]:
        while not stop.is_set():
            with lock:
                task = next(source, None)
            if task is None:
                return
            yield task

    def work(runner: Runner) -> None:
        try:
            for answer in _raising(pump(runner, take())):
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
        # The caller left early: a worker may be waiting for room in the queue. What was taken out
        # of it when an exception struck here is not to be counted on.
        while any(thread.is_alive() for thread in threads):
            with suppress(queue.Empty):
                answers.get_nowait()
            for thread in threads:
                thread.join(0.001)
    if failure is not None:
        raise failure


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
                result = runner.submit(task.tokens, task.order, task.outputs, task.options)
            except torch.OutOfMemoryError as error:
                # Batches in flight hold memory too: once they are done the same one may fit.
                landed = [_landed(*each) for each in flying]
                flying.clear()
                runner.free()
                if landed or len(task.order) > 1:
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
    lengths = np.diff(task.tokens.offsets)[task.order]
    warnings.warn(
        f"out of memory for {len(task.order)} texts of {lengths.sum()} tokens: the batch is split; "
        "a smaller token_budget avoids it",
        RuntimeWarning,
        stacklevel=2,
    )
    middle = int(np.searchsorted(np.cumsum(lengths), lengths.sum() / 2))
    middle = min(max(1, middle), len(task.order) - 1)
    return [replace(task, order=order) for order in (task.order[middle:], task.order[:middle])]
