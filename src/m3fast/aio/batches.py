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
from m3fast.engine.assembly import is_finite
from m3fast.errors import NonFiniteError
from m3fast.kernels.normalize import vectors_of_rows
from m3fast.model.mcls import colbert_counts
from m3fast.runner.base import BatchResult, HeadOptions, Outputs
from m3fast.types import Selection

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from m3fast.aio.lanes import Job
    from m3fast.engine.assembly import Assembler
    from m3fast.engine.options import Call
    from m3fast.types import Embeddings


class Request:
    """One call on its way: what to compute, what has come of it, who waits for it.

    Attributes:
        order: the texts as they are to run: longest first, so that a batch holds like lengths.
        lengths: tokens of each text in that order.
        began: when its first batch did.
        lock: of the assembler: two devices may have a part each.
    """

    def __init__(self, assembler: Assembler, call: Call) -> None:
        self.assembler, self.call = assembler, call
        self.order = np.argsort(-assembler.lengths, kind="stable")
        self.lengths: list[int] = assembler.lengths[self.order].tolist()
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[tuple[Embeddings, float]] = self.loop.create_future()
        self.began = 0.0
        self.lock = threading.Lock()

    def texts(self, start: int, stop: int) -> Selection:
        """Texts start to stop, as they are to run; their ids stay where they are."""
        return Selection(self.assembler.tokens, self.order[start:stop])

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


class SharedBatch:
    """Parts of requests as the runner takes them, and back.

    Attributes:
        missing: texts whose result has not come.
    """

    def __init__(self, parts: list[Part[Request]]) -> None:
        self.parts = parts
        self.missing = self._texts = sum(part.stop - part.start for part in parts)

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
        texts = [part.job.payload.texts(part.start, part.stop) for part in self.parts]
        return pipeline.Task(texts, outputs, options, self)

    def parts_of(self, task: pipeline.Task) -> Sequence[Part[Request]]:
        """The parts, or pieces of parts, that the texts of `task` are, one per part of it."""
        if len(task) == self._texts:
            return self.parts
        first, end, at = task.start, task.start + len(task), 0
        found: list[Part[Request]] = []
        for part in self.parts:
            shift = part.start - at
            at += part.stop - part.start
            start, stop = max(first + shift, part.start), min(end + shift, part.stop)
            if start < stop:
                found.append(Part(part.job, start, stop, sum(part.job.lengths[start:stop])))
        return found

    def put(
        self, task: pipeline.Task, result: BatchResult
    ) -> list[tuple[Job[Request], NonFiniteError]]:
        """Give each request its rows of the texts of `task`; those that cannot take theirs."""
        refused: list[tuple[Job[Request], NonFiniteError]] = []
        finite = is_finite(result)  # once for all; where it is not so, each looks at its own
        parts = self.parts_of(task)
        rows: list[int] = []
        if result.colbert is not None:
            lengths = [n for part in parts for n in part.job.lengths[part.start : part.stop]]
            counts = colbert_counts(np.array(lengths), task.options.pooling)
            rows = [0, *np.cumsum(counts).tolist()]
        at = 0
        for part, texts in zip(parts, task.parts, strict=True):
            request, end = part.job.payload, at + len(texts)
            if not part.job.closed:
                outputs, options = request.call.outputs, request.call.options
                dense = sparse = colbert = None
                if outputs.dense and result.dense is not None:
                    dense = result.dense[at:end]
                if outputs.sparse and result.sparse is not None:
                    sparse = result.sparse.view(at, end)
                if outputs.colbert and result.colbert is not None:
                    colbert = result.colbert[rows[at] : rows[end]]
                if options != task.options:
                    dense, colbert = (_finished(v, options) for v in (dense, colbert))
                own = BatchResult(dense, sparse, colbert, finite=finite)
                try:
                    with request.lock:
                        request.assembler.add(texts.order, own)
                except NonFiniteError as error:
                    refused.append((part.job, error))
            at = end
        return refused


def _finished(vectors: torch.Tensor | None, options: HeadOptions) -> torch.Tensor | None:
    if vectors is None:
        return None
    return vectors_of_rows(vectors, None, options.normalize, options.truncate_dim)
