"""From a checked body to the engine and back: what all families of routes have in common."""

from __future__ import annotations

import asyncio
import re
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

from m3fast.errors import InputError, M3FastError, NonFiniteError, TextSizeError
from m3fast.server.http.errors import Problem, problem_of
from m3fast.server.schemas.requests import InputText
from m3fast.text.allowance import at_most

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pydantic import BaseModel

    from m3fast.aio.engine import Lane
    from m3fast.engine.engine import Engine
    from m3fast.server.http.middleware import Call
    from m3fast.server.schemas.requests import Cutting
    from m3fast.types import Embeddings

Result = TypeVar("Result")
_PLACE = re.compile(r"^texts(?:\[(\d+)\])?")


def model_of(call: Call, model: str | None) -> str:
    """The served name that a request means."""
    names = call.service.settings.served_names
    if model is None:
        return names[0]
    if model not in names:
        raise Problem("model", "model: expected one of those at /v1/models, found another", "model")
    return model


def texts_of(given: str | Sequence[Any], param: str, *, empty: bool = False) -> list[Any]:
    """A list of texts and lists of ids from any of the forms that clients send.

    Raises:
        Problem: there is none, unless `empty`.
    """
    if isinstance(given, str):
        return [given]
    if not given and not empty:
        raise Problem("empty", f"{param}: expected at least one text, found none", param)
    if given and isinstance(given[0], int):
        return [list(given)]
    if given and isinstance(given[0], InputText):
        return [each.text for each in given]
    return list(given)


def agreed(body: BaseModel, *names: str) -> Any:
    """The value of a field that goes by several names, None where it is not given.

    Raises:
        Problem: it is given twice, and not the same.
    """
    found, first = None, ""
    for name in names:
        value = getattr(body, name)
        if isinstance(value, list):  # of one
            value = value[0]
        if value is None:
            continue
        if first and value != found:
            raise Problem("validation", f"{name}: expected what {first} says, found another", name)
        found, first = value, first or name
    return found


def prompt_of(engine: Engine, name: str | None, param: str) -> str | None:
    """The prompt that a request asks for by name, None for the model's default.

    Raises:
        Problem: the model has no such prompt.
    """
    names = list(engine.sentence.prompts)
    if name is not None and name not in names:
        wanted = f"null or one of {names}" if names else "null from a model without prompts"
        raise Problem("validation", f"{param}: expected {wanted}, found another name", param)
    return name


def check_list(call: Call, size: int, param: str) -> None:
    """Problem unless a list of so many is allowed."""
    most = call.service.settings.max_list
    if size > most:
        raise Problem("validation", f"{param}: expected at most {most}, found {size}", param)


def check_heads(engine: Engine, what: str, **wanted: bool) -> None:
    """Problem unless the model has a head for each output that is wanted."""
    missing = [n for n, asked in wanted.items() if asked and not getattr(engine.outputs, n)]
    if missing:
        raise Problem(
            "validation", f"{what}: expected a model with {' and '.join(missing)} vectors, "
            "found one without", what,
        )  # fmt: skip


def max_length_of(engine: Engine, asked: int | None) -> int:
    """Tokens per text: no request gets more than the server allows."""
    return engine.max_length if asked is None else min(asked, engine.max_length)


def truncation_of(engine: Engine, body: Cutting) -> tuple[int | None, bool | None]:
    """max_length and truncate from vLLM's truncate_prompt_tokens and the others' truncate."""
    tokens, cut = body.truncate_prompt_tokens, agreed(body, "truncate", "truncation")
    if tokens is None:
        return None, cut
    wanted = f"-1 or 3 to {engine.max_length}"
    if cut is False:
        wanted = "none in a request not to cut"
    elif tokens == -1:
        return None, True
    elif 3 <= tokens <= engine.max_length:
        return tokens, True
    name = "truncate_prompt_tokens"
    raise Problem("validation", f"{name}: expected {wanted}, found {tokens}", name)


async def cut_texts(
    call: Call, texts: list[str], most: int | None, param: str, place: Callable[[int], str]
) -> list[Any]:
    """Texts cut to so many tokens each, as token ids: a limit of some of a request's texts.

    Args:
        most: None or 0 for no limit. Above the server's own it cuts nothing: what is too long
            even then is up to `encode`.
        param: the name of `most`; place: what the client calls texts[i].
    """
    engine, limits = call.service.engine.engine, call.service.engine.limits
    limit, prompt = engine.max_length, engine.prompt(None)
    if not most or most > limit:
        return texts
    if most < 3:
        raise Problem("validation", f"{param}: expected 0 or at least 3, found {most}", param)
    # A token is a character at least, and 36 bytes in a list.
    call.hold(36 * sum(min(len(text) + 2, most) for text in texts))

    def cut() -> list[list[int]]:
        with at_most(limits.text_characters, limits.request_characters):
            tokens = engine.tokenizer.encode([prompt + text for text in texts], most)
        ids = tokens.ids.tolist()
        return [ids[start:stop] for start, stop in pairwise(tokens.offsets.tolist())]

    try:
        return await asyncio.get_running_loop().run_in_executor(call.service.pool, cut)
    except (InputError, TextSizeError) as error:
        raise _renamed(error, place) from None


def most_dimensions(engine: Engine, *, colbert: bool = False) -> int:
    """Width of the widest vectors."""
    widths = [engine.runner.weights.dense_size]
    if colbert and engine.runner.weights.colbert is not None:
        widths.append(engine.runner.weights.colbert.weight.shape[0])
    return min(max(widths), engine.options.truncate_dim or max(widths))


def check_dimensions(
    engine: Engine, asked: int | None, *, colbert: bool = False, param: str = "dimensions"
) -> None:
    """Problem where more dimensions are asked for than vectors have."""
    most = most_dimensions(engine, colbert=colbert)
    if asked is not None and asked > most:
        raise Problem("validation", f"{param}: expected at most {most}, found {asked}", param)


async def encode(
    call: Call,
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
    service = call.service
    record, settings = call.record, service.settings
    if timeout is not None and timeout > settings.timeout:
        raise Problem(
            "validation", f"timeout: expected at most {settings.timeout:g} s, found {timeout:g}",
            "timeout",
        )  # fmt: skip
    call.hold(0)  # before the work, not after it
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
        call.hold(vectors.values.nbytes)
    record.stages = answer.stages
    record.tokens = int(answer.embeddings.n_tokens.sum())
    return answer.embeddings


def _renamed(error: M3FastError, place: Callable[[int], str]) -> Problem:
    """The engine speaks of texts[i]; the client knows them by another name."""
    message, kind = str(error), problem_of(error, "").kind
    found = _PLACE.match(message)
    if found is None:
        return Problem(kind, message)
    name = place(int(found[1] or 0))
    if found[1] is None:
        name = name.partition("[")[0]
    return Problem(kind, name + message[found.end() :], name.partition("[")[0])


def usage(call: Call) -> dict[str, int]:
    """Tokens of the request, as OpenAI counts them."""
    return {"prompt_tokens": call.record.tokens, "total_tokens": call.record.tokens}
