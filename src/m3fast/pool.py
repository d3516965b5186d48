"""Several devices for the drop-in: one spawned process each, a queue in, a queue out.

A worker that dies or raises is an error in the caller, never a hang.
"""

from __future__ import annotations

import math
import os
import queue
from typing import TYPE_CHECKING, Any

import torch
import torch.multiprocessing as mp

from m3fast.errors import M3FastError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Pool = dict[str, Any]  # the reference's keys: input, output, processes


def start_pool(devices: list[str], target: Callable[..., None], model: Any) -> Pool:
    """Spawn `target(device, model, input, output)` for each device."""
    context = mp.get_context("spawn")
    jobs, done = context.Queue(), context.Queue()
    # CPU workers share the cores instead of each taking all of them.
    threads = max(1, (os.cpu_count() or 1) // max(1, devices.count("cpu")))
    processes = [
        context.Process(target=_start, args=(target, threads, d, model, jobs, done), daemon=True)
        for d in devices
    ]
    for process in processes:
        process.start()
    return {"input": jobs, "output": done, "processes": processes}


def _start(
    target: Callable[..., None], threads: int, device: str, model: Any, jobs: Any, done: Any
) -> None:
    if device == "cpu":
        torch.set_num_threads(threads)
    target(device, model, jobs, done)


def serve(jobs: Any, done: Any, work: Callable[..., Any]) -> None:
    """A worker's loop: [number, items, kwargs] in, [number, result or exception] out."""
    while True:
        number, items, kwargs = jobs.get()
        try:
            done.put([number, work(items, **kwargs)])
        except Exception as error:  # whatever it is, the caller gets it
            done.put([number, error])


def submit(pool: Pool, items: Sequence[Any], kwargs: dict[str, Any]) -> int:
    """Cut items into one chunk per process; returns the number of chunks.

    Raises:
        M3FastError: a worker is dead.
    """
    _check_alive(pool)
    size = max(1, math.ceil(len(items) / len(pool["processes"])))
    chunks = [items[i : i + size] for i in range(0, len(items), size)] or [items]
    for number, chunk in enumerate(chunks):
        pool["input"].put([number, chunk, kwargs])
    return len(chunks)


def gather(pool: Pool, n_chunks: int) -> list[Any]:
    """Results in chunk order.

    Raises:
        M3FastError: a worker died; or whatever a worker raised.
    """
    results: dict[int, Any] = {}
    while len(results) < n_chunks:
        try:
            number, result = pool["output"].get(timeout=1.0)
        except queue.Empty:
            _check_alive(pool)
            continue
        results[number] = result
    for result in results.values():
        if isinstance(result, Exception):
            raise result
    return [results[number] for number in range(n_chunks)]


def _check_alive(pool: Pool) -> None:
    dead = [p.exitcode for p in pool["processes"] if not p.is_alive()]
    if dead:
        raise M3FastError(f"pool: a worker process died with exit code {dead[0]}")


def stop_pool(pool: Pool) -> None:
    """Terminate the workers and close the queues."""
    for process in pool["processes"]:
        process.terminate()
    for process in pool["processes"]:
        process.join()
        process.close()
    pool["input"].close()
    pool["output"].close()
