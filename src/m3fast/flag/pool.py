"""Several devices for the drop-in: one spawned process each, on a pipe of its own.

A thread per process hands it one job at a time and brings the result to the call that the job is
of. So no call can meet another's results, however many threads call, and what an interrupted call
leaves is dropped: signal handlers run in the main thread, which never reads a pipe. A worker that
dies or raises is an error in the caller, never a hang. Workers end with their parent.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import pickle
import queue
import signal
import threading
import time
import weakref
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from typing import TYPE_CHECKING, Any

import torch

from m3fast.errors import M3FastError, NonFiniteError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from multiprocessing.process import BaseProcess

    Link = connection.Connection[Any, Any]


# Most items of a job: what an interrupted call may leave running, a second or so of work.
CPU_ITEMS, GPU_ITEMS = 64, 2048


class _Call:
    """One call's results as (place, result), and whether anybody still waits for them."""

    def __init__(self) -> None:
        # SimpleQueue is C: an exception of a signal handler cannot leave it locked.
        self.results: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        self.over = False


@dataclass(frozen=True, slots=True)
class _Job:
    call: _Call
    place: int
    items: Sequence[Any]
    kwargs: dict[str, Any]


class _State:
    """What a pool and its threads share; the threads must not keep the pool itself alive."""

    def __init__(self) -> None:
        self.jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self.numbers = itertools.count()
        self.failure = ""  # why the pool is of no use any more


class Pool(dict[str, Any]):
    """Worker processes, under "processes" as in the reference's dict. Any thread may use it."""

    def __init__(self, devices: Sequence[str], target: Callable[..., None], model: Any) -> None:
        """Spawn `target(device, model, jobs, done)` for each device.

        It gets [number, items, kwargs] by `jobs.get()` and answers by `done.put([number, result])`.
        """
        super().__init__()
        self._most = CPU_ITEMS if "cpu" in devices else GPU_ITEMS
        context = multiprocessing.get_context("spawn")
        # CPU workers share the cores instead of each taking all of them.
        threads = max(1, (os.cpu_count() or 1) // max(1, list(devices).count("cpu")))
        self._state = _State()
        processes: list[BaseProcess] = []
        self["processes"] = processes
        weakref.finalize(self, _stop, os.getpid(), processes, self._state.jobs)
        for device in devices:
            ours, theirs = context.Pipe()
            args = (target, threads, device, model, theirs)
            process = context.Process(target=_start, args=args, daemon=True)
            with _without_interrupts():
                process.start()
            theirs.close()  # or its end would not be seen here
            processes.append(process)
            args = (process, ours, self._state)
            threading.Thread(target=_drive, args=args, daemon=True, name="m3fast-pool").start()

    def map(self, items: Sequence[Any], kwargs: dict[str, Any]) -> list[tuple[int, Any]]:
        """Items in chunks, spread over the processes; (first item's index, result) of each chunk.

        Raises:
            M3FastError: a worker died; or whatever a worker raised.
        """
        self._check()
        size = min(self._most, max(1, math.ceil(len(items) / len(self["processes"]))))
        starts = range(0, len(items), size) or [0]
        call, found = _Call(), dict[int, Any]()
        try:
            for start in starts:
                self._state.jobs.put(_Job(call, start, items[start : start + size], kwargs))
            while len(found) < len(starts):
                try:
                    place, result = call.results.get(timeout=1.0)
                except queue.Empty:
                    self._check()
                    continue
                if isinstance(result, Exception):
                    raise result.shifted(place) if isinstance(result, NonFiniteError) else result
                found[place] = result
        finally:
            call.over = True  # what of it has not begun is not computed
        return sorted(found.items(), key=lambda item: item[0])

    def stop(self) -> None:
        """End the workers. Nothing happens the second time."""
        self._state.failure = self._state.failure or "pool: it has been stopped"
        _stop(os.getpid(), self["processes"], self._state.jobs)

    def _check(self) -> None:
        if self._state.failure:
            raise M3FastError(self._state.failure)


def _drive(process: BaseProcess, link: Link, state: _State) -> None:
    """The thread beside one worker."""
    with link:
        while (job := state.jobs.get()) is not None:
            if job.call.over:
                continue
            number = next(state.numbers)
            try:
                link.send([number, job.items, job.kwargs])
                answer = link.recv()
                while answer[0] != number:
                    answer = link.recv()
                result = answer[1]
            except (EOFError, OSError):
                _wait(process)
                state.failure = state.failure or (
                    f"pool: a worker process died with exit code {process.exitcode}"
                )
                job.call.results.put((job.place, M3FastError(state.failure)))
                return
            except Exception as error:  # what cannot be pickled, on the way there or back
                result = error
            job.call.results.put((job.place, result))


def _wait(process: BaseProcess) -> None:
    # Another thread may be asking for the exit code too: one of them gets it first.
    for _ in range(100):
        process.join(0.05)
        if process.exitcode is not None:
            return
        time.sleep(0.01)


def _stop(owner: int, processes: list[BaseProcess], jobs: queue.SimpleQueue[_Job | None]) -> None:
    if os.getpid() != owner:  # a forked child's copy
        return
    for process in processes:
        jobs.put(None)  # for the thread beside it
        process.terminate()
    for process in processes:
        process.join(5.0)
        if process.is_alive():
            process.kill()


@contextmanager
def _without_interrupts() -> Generator[None]:
    """A process started here never gets Ctrl-C, which a terminal sends to children as well."""
    resource_tracker.ensure_running()  # whose start would let the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# In the worker --------------------------------------------------------------------------------


class _Ends:
    """One end of a pipe as the two queues that a target of the reference takes."""

    def __init__(self, link: Link) -> None:
        self.get, self.put = link.recv, link.send


def _start(target: Callable[..., None], threads: int, device: str, model: Any, link: Link) -> None:
    from tqdm import tqdm

    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Its own is a semaphore of the system's, which a process that is ended would leave behind.
    tqdm.set_lock(threading.RLock())
    if device == "cpu":
        torch.set_num_threads(threads)
    ends = _Ends(link)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone
        target(device, model, ends, ends)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    # A forked child of the parent may hold the sentinel open: hence its number too.
    while not connection.wait([parent.sentinel], 1.0) and os.getppid() == parent.pid:
        pass
    os._exit(0)


def serve(jobs: Any, done: Any, work: Callable[..., Any]) -> None:
    """A worker's loop: [number, items, kwargs] in, [number, result or exception] out."""
    while True:
        number, items, kwargs = jobs.get()
        try:
            result = work(items, **kwargs)
        except Exception as error:  # whatever it is, the caller gets it
            result = _portable(error)
        done.put([number, result])


def _portable(error: Exception) -> Exception:
    """The error, or its words where it does not survive pickling."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return M3FastError(f"pool: a worker raised {type(error).__name__}: {error}")
    return error
