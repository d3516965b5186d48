"""The call of the engine that all families of routes share, with its errors and its record."""

from __future__ import annotations

import asyncio
import re
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from m3fast.errors import InputError, M3FastError, NonFiniteError, TextSizeError
from m3fast.server.http.errors import Problem, problem_of
from m3fast.text.tokenizer import at_most

if TYPE_CHECKING:
    from collections.abc import Callable

    from m3fast.aio.engine import Lane
    from m3fast.engine.engine import Engine
    from m3fast.server.http.context import RequestContext
    from m3fast.types import Embeddings

# What the engine calls the texts in its messages.
_PLACE = re.compile(r"^texts(?:\[(\d+)\])?")


def max_length_of(engine: Engine, asked: int | None) -> int:
    """Tokens per text: as asked, at most what the server allows."""
    return engine.max_length if asked is None else min(asked, engine.max_length)


async def encode(
    context: RequestContext,
    texts: list[Any],
    place: Callable[[int], str],
    *,
    dense: bool = False,
    sparse: bool = False,
    colbert: bool = False,
    max_length: int | None = None,
    truncate: bool | None = None,
    dimensions: int | None = None,
    normalize: bool | None = None,
    prompt_name: str | None = None,
    lane: Lane = "auto",
    timeout: float | None = None,
) -> Embeddings:
    """Run texts through the engine and note in the record what it took.

    Args:
        place: what the client calls texts[i], for errors.

    Raises:
        Problem: a timeout above the server's own, no memory; else what `AsyncEngine.encode` raises.
    """
    service = context.service
    record, settings = context.record, service.settings
    if timeout is not None and timeout > settings.timeout:
        raise Problem(
            "validation", f"timeout: expected at most {settings.timeout:g} s, found {timeout:g}",
            "timeout",
        )  # fmt: skip
    context.hold(0)  # refuse before the work, not after it
    record.texts = len(texts)
    record.engine_ns = time.time_ns()
    try:
        answer = await service.engine.submit(
            texts,
            dense=dense,
            sparse=sparse,
            colbert=colbert,
            max_length=max_length_of(service.engine.engine, max_length),
            truncate=settings.auto_truncate if truncate is None else truncate,
            truncate_dim=dimensions,
            normalize=normalize,
            prompt_name=prompt_name,
            lane=lane,
            timeout=timeout,
        )
    except (InputError, TextSizeError, NonFiniteError) as error:
        raise _renamed(error, place) from error
    if (vectors := answer.embeddings.colbert) is not None:
        context.hold(vectors.values.nbytes)
    record.stages = answer.stages
    record.tokens = int(answer.embeddings.n_tokens.sum())
    return answer.embeddings


async def cut_texts(
    context: RequestContext,
    texts: list[str],
    most: int | None,
    param: str,
    place: Callable[[int], str],
) -> list[Any]:
    """Texts cut to `most` tokens each, as token ids.

    Args:
        most: None or 0 for no limit. Above the server's own it cuts nothing: what is too long
            even then is up to `encode`.
        param: the name of `most`; place: what the client calls texts[i].
    """
    engine, limits = context.service.engine.engine, context.service.engine.limits
    limit, prompt = engine.max_length, engine.prompt(None)
    if not most or most > limit:
        return texts
    if most < 3:
        raise Problem("validation", f"{param}: expected 0 or at least 3, found {most}", param)
    # A token is a character at least, and 36 bytes in a list.
    context.hold(36 * sum(min(len(text) + 2, most) for text in texts))

    def cut() -> list[list[int]]:
        with at_most(limits.text_characters, limits.request_characters):
            tokens = engine.tokenizer.encode([prompt + text for text in texts], most)
        ids = tokens.ids.tolist()
        return [ids[start:stop] for start, stop in pairwise(tokens.offsets.tolist())]

    try:
        return await asyncio.get_running_loop().run_in_executor(context.service.pool, cut)
    except (InputError, TextSizeError) as error:
        raise _renamed(error, place) from None


def _renamed(error: M3FastError, place: Callable[[int], str]) -> Problem:
    """The engine's error with the client's name for texts[i]."""
    message, kind = str(error), problem_of(error, "").kind
    found = _PLACE.match(message)
    if found is None:
        return Problem(kind, message)
    name = place(int(found[1] or 0))
    if found[1] is None:
        name = name.partition("[")[0]
    return Problem(kind, name + message[found.end() :], name.partition("[")[0])


def usage(context: RequestContext) -> dict[str, int]:
    """Tokens of the request, as OpenAI counts them."""
    return {"prompt_tokens": context.record.tokens, "total_tokens": context.record.tokens}
