"""The keyword arguments of every method that encodes, and what one call makes of them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, get_type_hints

from m3fast.errors import InputError
from m3fast.runner.base import Outputs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from m3fast.runner.base import HeadOptions

    Method = TypeVar("Method", bound=Callable[..., Any])


class EncodeOptions(TypedDict, total=False):
    """What to encode texts to, and how. None is what a key that is left out means.

    Attributes:
        dense, sparse, colbert: True, False, or None for what the checkpoint has.
        max_length: most tokens per text, longer ones are cut on the right; None for the engine's
            own.
        truncate_dim: leading dimensions to keep of dense and colbert vectors; None for the
            engine's own.
        normalize: L2-normalise dense and colbert vectors; None for the engine's own.
        prompt_name: which of the checkpoint's prompts stands before each text (not before ids);
            None for its default one, "" for none.
    """

    dense: bool | None
    sparse: bool | None
    colbert: bool | None
    max_length: int | None
    truncate_dim: int | None
    normalize: bool | None
    prompt_name: str | None


@dataclass(frozen=True, slots=True)
class Call:
    """What one call asks for, checked.

    Attributes:
        outputs, options: what is made, and how; max_length: most tokens per text.
        prompt: put before each text.
    """

    outputs: Outputs
    options: HeadOptions
    max_length: int
    prompt: str = ""


_KEYWORDS = {
    name: inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
    for name, kind in get_type_hints(EncodeOptions).items()
}


def check_keywords(method: str, options: EncodeOptions) -> None:
    """Python's own TypeError for a keyword that is not in `EncodeOptions`, naming the method."""
    for name in options:
        if name not in _KEYWORDS:
            raise TypeError(f"{method}() got an unexpected keyword argument {name!r}")


def lists_options(method: Method) -> Method:
    """Name each key of `EncodeOptions` in the signature of a method that takes them as `**`."""
    signature = inspect.signature(method)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    listed = signature.replace(parameters=[*own, *_KEYWORDS.values()])
    method.__dict__["__signature__"] = listed
    return method


def chosen_outputs(available: Outputs, options: EncodeOptions, path: Path) -> Outputs:
    """Which outputs to make of those that the checkpoint at `path` has heads for.

    Raises:
        InputError: an output has no head, or none is asked for.
    """
    chosen: dict[str, bool] = {}
    for name in ("dense", "sparse", "colbert"):
        has, asked = bool(getattr(available, name)), options.get(name)
        if asked and not has:
            raise InputError(
                f"{name}: expected None or False, found True: {path} has no {name}_linear.pt"
            )
        chosen[name] = has if asked is None else bool(asked)
    if not any(chosen.values()):
        raise InputError("dense, sparse, colbert: expected at least one, found none")
    return Outputs(**chosen)
