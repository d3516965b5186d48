"""CUDA graphs by shape: what is launched kernel by kernel once is replayed in one launch later."""

from __future__ import annotations

import ctypes
import warnings
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable


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
        After a capture that failed, which is said, nothing more is captured. The stream of the
        graphs must be the current one.
        """
        graph = self._graphs.get(key)
        if self._stream is not None and graph is None and key in self._graphs:
            graph = self._capture(key, work, self._stream)
        if graph is not None:
            graph.replay()
            return
        work()
        self._graphs[key] = None

    def _capture(
        self, key: Hashable, work: Callable[[], None], stream: torch.cuda.Stream
    ) -> torch.cuda.CUDAGraph | None:
        pool = next((g.pool() for g in self._graphs.values() if g is not None), None)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(
                graph, pool=pool, stream=stream, capture_error_mode="thread_local"
            ):
                work()
        except BaseException as error:
            self._stream = None
            _abandon(graph, stream)
            if not isinstance(error, RuntimeError):
                raise
            warnings.warn(
                f"no CUDA graph for {key}, its kernels are launched one by one: {error}",
                RuntimeWarning,
                stacklevel=4,
            )
            return None
        self._graphs[key] = graph
        return graph


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
