"""Checks of a request's fields that several families of routes have, each ending in a Problem."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from m3fast.server.http.errors import Problem
from m3fast.server.schemas.openai import InputText

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import BaseModel

    from m3fast.engine.engine import Engine
    from m3fast.server.http.context import RequestContext
    from m3fast.server.schemas.fields import Cutting


def model_of(context: RequestContext, model: str | None) -> str:
    """The served name that a request means."""
    names = context.service.settings.served_names
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


def check_list(context: RequestContext, size: int, param: str) -> None:
    """Problem unless a list of so many is allowed."""
    most = context.service.settings.max_list
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


def most_dimensions(engine: Engine, *, colbert: bool = False) -> int:
    """Width of the widest vectors."""
    weights = engine.runner.weights
    most = max(weights.dense_size, weights.colbert_size) if colbert else weights.dense_size
    return min(most, engine.options.truncate_dim or most)


def check_dimensions(
    engine: Engine, asked: int | None, *, colbert: bool = False, param: str = "dimensions"
) -> None:
    """Problem where more dimensions are asked for than vectors have."""
    most = most_dimensions(engine, colbert=colbert)
    if asked is not None and asked > most:
        raise Problem("validation", f"{param}: expected at most {most}, found {asked}", param)
