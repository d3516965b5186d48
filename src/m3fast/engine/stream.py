"""Windows of texts through tokenizer, plan and runners: the embeddings of each, in order."""

from __future__ import annotations

import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import chain, islice
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
    """Token ids of each window; of several beside a GPU in a thread, one window ahead."""
    given = (call.max_length, call.prompt)
    windows = iter(parts)
    if engine.device.type != "cpu":
        first = list(islice(windows, 2))
        windows = chain(first, windows)
        if len(first) == 2:  # of one a thread would cost a query as much as its encoding
            yield from _ahead(lambda part: engine.tokenize(part, *given), windows)
            return
    yield from (engine.tokenize(part, *given) for part in windows)


def _ahead(tokenize: Callable[[Texts], TokenIds], parts: Iterator[Texts]) -> Iterator[TokenIds]:
    with ThreadPoolExecutor(1) as pool:
        this = pool.submit(tokenize, next(parts))
        for part in parts:
            following = pool.submit(tokenize, part)
            yield this.result()
            this = following
        yield this.result()


def progress_bar(total: int | None, show: bool | None) -> Any:
    """A tqdm bar over texts, or what takes its updates in silence; None shows it on a terminal."""
    if not (sys.stderr.isatty() if show is None else show):
        return nullcontext(SimpleNamespace(update=lambda _: None))
    from tqdm import tqdm

    return tqdm(total=total, unit="texts", delay=1.0)  # short work stays silent
