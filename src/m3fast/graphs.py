"""CUDA graphs by shape: what is launched kernel by kernel once is replayed in one launch later."""

from __future__ import annotations

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
        return sum(graph is not None for graph in self._graphs.values())

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        """Do `work`, which must read and write the same memory whenever it is called with `key`.

        The first time it runs eagerly, which compiles and tunes what it needs; the second time it
        is captured, a second's fraction that a shape seen once does not pay; then it is replayed.
        """
        if self._stream is None:
            work()
        elif key not in self._graphs:
            work()
            self._graphs[key] = None
        else:
            graph = self._graphs[key] or self._capture(key, work)
            graph.replay() if graph else work()

    def _capture(
        self, key: Hashable, work: Callable[[], None]
    ) -> torch.cuda.CUDAGraph | None:
        pool = next((g.pool() for g in self._graphs.values() if g is not None), None)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(
                graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                work()
        except RuntimeError as error:
            warnings.warn(
                f"no CUDA graph for {key}, its kernels are launched one by one: {error}",
                RuntimeWarning,
                stacklevel=4,
            )
            self._stream = None
            return None
        self._graphs[key] = graph
        return graph
