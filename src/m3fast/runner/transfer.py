"""What crosses the bus: pinned buffers for uploads, results down on a stream of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from m3fast.runner.base import BatchResult
    from m3fast.runner.staging import Results


class Transfer:
    """Copies of one runner between the host and its GPU; plain ones where there is none."""

    def __init__(self, stream: torch.cuda.Stream | None, vocab_size: int) -> None:
        """Beside what `stream` computes; None where kernels are interpreted."""
        self.stream, self._vocab_size = stream, vocab_size
        self._copies = None if stream is None else torch.cuda.Stream(stream.device)

    def pinned(self, words: int) -> torch.Tensor:
        """Uninitialised int32 [words] to upload from."""
        # torch keeps pinned memory and hands it out again once copies from it are done.
        return torch.empty(words, dtype=torch.int32, pin_memory=self.stream is not None)

    def fetch(self, out: torch.Tensor, results: Results, texts: int) -> Callable[[], BatchResult]:
        """Start the download of `results` on the current stream; what comes back waits for it."""
        host = torch.empty(results.words, pin_memory=self.stream is not None)
        host.copy_(out, non_blocking=True)
        done = None if self.stream is None else torch.cuda.Event()
        if done is not None:
            done.record()

        def wait() -> BatchResult:
            if done is not None:
                done.synchronize()
            return results.read(host, texts, self._vocab_size)

        return wait

    def fetch_aside(
        self, out: torch.Tensor, results: Results, texts: int
    ) -> Callable[[], BatchResult]:
        """As `fetch`, on the copy stream; `out` must not be written again."""
        if self._copies is not None and self.stream is not None:
            self._copies.wait_stream(self.stream)
            out.record_stream(self._copies)
        with torch.cuda.stream(self._copies):
            return self.fetch(out, results, texts)
