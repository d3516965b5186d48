"""Requests of many callers in one batch, and its results back to each of them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from m3fast.aio.lanes import Part
from m3fast.engine import pipeline
from m3fast.engine.assembly import is_finite, ragged_index
from m3fast.errors import NonFiniteError
from m3fast.kernels.normalize import vectors_of_rows
from m3fast.model.mcls import colbert_counts
from m3fast.runner.base import BatchResult, HeadOptions, Outputs
from m3fast.types import Selection, TokenIds

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from m3fast.aio.lanes import Job
    from m3fast.engine.assembly import Window
    from m3fast.engine.engine import Call
    from m3fast.types import Embeddings


class Request:
    """One call on its way: what to compute, what has come of it, who waits for it."""

    def __init__(self, tokens: TokenIds, call: Call, window: Window) -> None:
        self.call, self.window = call, window
        # Longest texts first, so that a batch holds texts of like length; their ids in that order
        # too, so that texts which run together lie together.
        self.order = np.argsort(-window.lengths, kind="stable")
        self.tokens = tokens if len(tokens) == 1 else _reordered(tokens, self.order)
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[tuple[Embeddings, float]] = self.loop.create_future()
        self.began = 0.0
        self.lock = threading.Lock()  # of the window: two devices may have a part each

    def settle(self, result: Embeddings | Exception, when: float) -> None:
        """Wake the caller up, from any thread."""
        with contextlib.suppress(RuntimeError):  # its loop is closed: nobody waits
            self.loop.call_soon_threadsafe(self._settle, result, when)

    def _settle(self, result: Embeddings | Exception, when: float) -> None:
        if self.future.done():
            return
        if isinstance(result, Exception):
            self.future.set_exception(result)
        else:
            self.future.set_result((result, when))


class Batch:
    """Parts of requests as the runner takes them, and back.

    Attributes:
        missing: texts whose result has not come.
    """

    def __init__(self, parts: list[Part[Request]]) -> None:
        self.parts = parts
        self.tokens = _joined(parts)
        self.starts = np.cumsum([0, *(part.stop - part.start for part in parts)])
        self.missing = len(self.tokens)

    def task(self) -> pipeline.Task:
        """Whatever one of the requests wants is computed for all."""
        calls = [part.job.payload.call for part in self.parts]
        outputs = Outputs(
            any(call.outputs.dense for call in calls),
            any(call.outputs.sparse for call in calls),
            any(call.outputs.colbert for call in calls),
        )
        options = calls[0].options
        if any(call.options != options for call in calls):
            options = replace(options, normalize=False, truncate_dim=None)
        whole = Selection(self.tokens, np.arange(len(self.tokens)))
        return pipeline.Task([whole], outputs, options, self)

    def parts_of(self, texts: NDArray[np.int64]) -> list[Part[Request]]:
        """The parts, or pieces of parts, that these consecutive texts of the batch are."""
        first, end = int(texts[0]), int(texts[-1]) + 1
        offsets = self.tokens.offsets
        found: list[Part[Request]] = []
        for part, at in zip(self.parts, self.starts.tolist(), strict=False):
            lo, hi = max(first, at), min(end, at + part.stop - part.start)
            if lo < hi:
                shift = part.start - at
                tokens = int(offsets[hi] - offsets[lo])
                found.append(Part(part.job, lo + shift, hi + shift, tokens))
        return found

    def put(
        self, task: pipeline.Task, result: BatchResult
    ) -> list[tuple[Job[Request], NonFiniteError]]:
        """Give each request its rows of the texts of `task`; those that cannot take theirs."""
        refused: list[tuple[Job[Request], NonFiniteError]] = []
        finite = is_finite(result)  # once for all; where it is not so, each looks at its own
        (texts,) = task.parts
        lengths = texts.lengths
        counts = colbert_counts(lengths, task.options.pooling)
        ends = np.concatenate([[0], np.cumsum(counts)]).tolist()
        at = 0
        for part in self.parts_of(texts.order):
            request, end = part.job.payload, at + part.stop - part.start
            if not part.job.closed:
                outputs, options = request.call.outputs, request.call.options
                same = options == task.options
                dense = result.dense[at:end] if outputs.dense and result.dense is not None else None
                sparse = colbert = None
                if outputs.sparse and result.sparse is not None:
                    sparse = result.sparse.view(at, end)
                if outputs.colbert and result.colbert is not None:
                    colbert = result.colbert[ends[at] : ends[end]]
                if not same:
                    dense, colbert = (_finished(v, options) for v in (dense, colbert))
                order = request.order[part.start : part.stop]
                rows = BatchResult(dense, sparse, colbert, finite=finite)
                try:
                    with request.lock:
                        request.window.add(order, rows)
                except NonFiniteError as error:
                    refused.append((part.job, error))
            at = end
        return refused


def _finished(vectors: torch.Tensor | None, options: HeadOptions) -> torch.Tensor | None:
    if vectors is None:
        return None
    return vectors_of_rows(vectors, None, options.normalize, options.truncate_dim)


def _reordered(tokens: TokenIds, order: NDArray[np.int64]) -> TokenIds:
    lengths = np.diff(tokens.offsets)[order]
    return TokenIds(
        tokens.ids[ragged_index(tokens.offsets, order)],
        np.concatenate([[0], np.cumsum(lengths)]),
        tokens.truncated[order],
    )


def _joined(parts: list[Part[Request]]) -> TokenIds:
    """Token ids of all texts of a batch."""
    ids: list[NDArray[np.int32]] = []
    lengths: list[NDArray[np.int64]] = []
    for part in parts:
        tokens = part.job.payload.tokens
        offsets = tokens.offsets[part.start : part.stop + 1]
        ids.append(tokens.ids[offsets[0] : offsets[-1]])
        lengths.append(np.diff(offsets))
    sizes = np.concatenate(lengths)
    return TokenIds(
        ids[0] if len(ids) == 1 else np.concatenate(ids),
        np.concatenate([[0], np.cumsum(sizes)]),
        np.zeros(len(sizes), np.bool_),
    )
