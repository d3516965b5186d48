"""Windows of texts through tokenizer, plan and runners: the embeddings of each, in order."""

from __future__ import annotations

import sys
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from m3fast.engine import pipeline
from m3fast.engine.assembly import Assembler
from m3fast.engine.plan import plan_batches
from m3fast.types import Selection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from m3fast.engine.base import EngineBase
    from m3fast.engine.options import Call
    from m3fast.inputs import Texts
    from m3fast.types import Embeddings, TokenIds


def stream(
    engine: EngineBase,
    parts: Iterable[Texts],
    call: Call,
    max_texts: int | None,
    progress: Callable[[int], Any],
) -> Iterator[Embeddings]:
    """The embeddings of each window of texts, in order.

    Args:
        parts: the windows.
        max_texts: most texts per batch; None for no limit.
        progress: told how many texts are done with each batch.
    """
    waiting: deque[Assembler] = deque()

    def tasks() -> Iterator[pipeline.Task]:
        first = 0
        for tokens in _tokenized(engine, parts, call):
            window = Assembler.for_call(engine.runner, tokens, call, first)
            first += len(tokens)
            waiting.append(window)
            for order in plan_batches(window.lengths, engine.token_budget, max_texts):
                part = Selection(tokens, order)
                yield pipeline.Task([part], call.outputs, call.options, window)

    for task, result in pipeline.run(engine.runners, tasks()):
        task.owner.add(task.parts[0].order, result)
        progress(len(task))
        while waiting and waiting[0].done:
            yield waiting.popleft().finish()
    while waiting:  # windows without a text, which made no batch
        yield waiting.popleft().finish()


def _tokenized(engine: EngineBase, parts: Iterable[Texts], call: Call) -> Iterator[TokenIds]:
    """Token ids of each window; beside a GPU, in a thread, one window ahead."""
    given = (call.max_length, call.prompt)
    if engine.device.type == "cpu":
        yield from (engine.tokenize(part, *given) for part in parts)
        return
    with ThreadPoolExecutor(1) as pool:
        ahead: Future[TokenIds] | None = None
        for part in parts:
            this, ahead = ahead, pool.submit(engine.tokenize, part, *given)
            if this is not None:
                yield this.result()
        if ahead is not None:
            yield ahead.result()


def progress_bar(total: int | None, show: bool | None) -> Any:
    """A tqdm bar over texts, or what takes its updates in silence; None shows it on a terminal."""
    if not (sys.stderr.isatty() if show is None else show):
        return nullcontext(SimpleNamespace(update=lambda _: None))
    from tqdm import tqdm

    return tqdm(total=total, unit="texts", delay=1.0)  # short work stays silent
