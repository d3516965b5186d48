"""What a caller hands in: checked at the boundary, cut into windows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from m3fast.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    Texts = Sequence[str | Sequence[int]]


def check_positive(name: str, value: int) -> None:
    """InputError naming the argument unless it is an integer above 0."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name}: expected a positive integer, found {value!r}")


def check_padded(ids: Any, mask: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [B, L] as int32 or int64 and a bool mask of their shape, all true for None."""
    for name, value in (("input_ids", ids), ("attention_mask", ids if mask is None else mask)):
        if not isinstance(value, torch.Tensor):
            raise InputError(f"{name}: expected a tensor, found {type(value).__name__}")
        if value.is_floating_point() or value.is_complex():
            raise InputError(f"{name}: expected integers, found {value.dtype}")
        if value.ndim != 2 or value.shape != ids.shape:
            raise InputError(f"{name}: expected shape [B, L], found {list(value.shape)}")
    mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.to(ids.device)
    return ids if ids.dtype == torch.int32 else ids.long(), mask.ne(0)


def check_texts(texts: Any) -> Texts:
    """A single str as a list of one; the tokenizer checks each element."""
    if isinstance(texts, str):
        return [texts]
    if not isinstance(texts, list | tuple):
        hint = "; for an iterator use encode_iter" if hasattr(texts, "__next__") else ""
        raise InputError(
            f"texts: expected a str or a list of str, found {type(texts).__name__}{hint}"
        )
    return texts  # pyright: ignore[reportUnknownVariableType]


def windows(
    texts: Iterable[str | Sequence[int]], max_length: int, most_texts: int, most_characters: int
) -> Iterator[Texts]:
    """Consecutive texts, as many as are worked on together."""
    window: list[str | Sequence[int]] = []
    characters = 0
    for text in texts:
        window.append(text)
        # A text costs memory for the tokens it keeps, however long it is.
        characters += min(len(text), 8 * max_length) if hasattr(text, "__len__") else 0
        if len(window) == most_texts or characters >= most_characters:
            yield window
            window, characters = [], 0
    if window:
        yield window
