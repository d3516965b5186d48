"""CUDA graphs by shape: what is launched kernel by kernel once is replayed in one launch later."""

from __future__ import annotations

import ctypes
import warnings
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

MOST_KEYS = 512  # what callers may choose is part of a key, so there is no end to them


class Graphs:
    """Captured work, by key. All graphs share one memory pool: only one of them runs at a time."""

    def __init__(self, stream: torch.cuda.Stream | None) -> None:
        """Capture on `stream`; None, on a CPU or to leave graphs out, runs everything eagerly."""
        self._stream = stream
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph | None] = {}

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def keys(self) -> list[Hashable]:
        """What has been captured."""
        return [key for key, graph in self._graphs.items() if graph is not None]

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        """Do `work`, which must read and write the same memory whenever it is called with `key`.

        The first time it runs eagerly, which compiles and tunes what it needs; the second time it
        is captured, a second's fraction that a shape seen once does not pay; then it is replayed.
        The key that was not used for longest is forgotten for one too many. After a capture that
        failed, which is said, nothing more is captured. The stream must be the current one.
        """
        seen = key in self._graphs
        graph = self._graphs.get(key)
        if seen and graph is None and self._stream is not None:
            graph = self._capture(key, work, self._stream)
        if graph is None:
            work()
        else:
            graph.replay()
        self._graphs.pop(key, None)
        self._graphs[key] = graph
        if len(self._graphs) > MOST_KEYS:
            del self._graphs[next(iter(self._graphs))]

    def _capture(
        self, key: Hashable, work: Callable[[], None], stream: torch.cuda.Stream
    ) -> torch.cuda.CUDAGraph | None:
        pool = next((g.pool() for g in self._graphs.values() if g is not None), None)
        graph, failure = torch.cuda.CUDAGraph(), None
        try:
            with torch.cuda.graph(
                graph, pool=pool, stream=stream, capture_error_mode="thread_local"
            ):
                try:
                    work()
                except BaseException as error:  # the end of the capture would say less
                    failure = error.with_traceback(None)  # which holds tensors
        except BaseException as error:
            failure = failure or error.with_traceback(None)
        if failure is None:
            return graph
        self._stream = None
        _abandon(graph, stream)
        if not isinstance(failure, RuntimeError):
            raise failure
        warnings.warn(
            f"no CUDA graph for {key}, its kernels are launched one by one: {failure}",
            RuntimeWarning,
            stacklevel=4,
        )
        return None


def _abandon(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream) -> None:
    """Give back what a failed capture on `stream`, the current one, holds.

    Where CUDA refuses to end a capture, torch's `capture_end` raises before it tells its allocators
    and its random number generator, which go on as if it lasted. An empty capture on the same
    stream, ended in its place, tells them.
    """
    try:
        graph.pool()  # raises but after a capture that has ended
    except RuntimeError:
        relaxed = 2  # CU_STREAM_CAPTURE_MODE_RELAXED
        begin = ctypes.CDLL("libcuda.so.1").cuStreamBeginCapture_v2
        begin(ctypes.c_void_p(stream.cuda_stream), relaxed)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The CUDA Graph is empty")
            graph.capture_end()
    graph.reset()
