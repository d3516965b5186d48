"""What a caller hands in: checked at the boundary, cut into windows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from m3fast.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

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


def check_texts(
    texts: Any, name: str = "texts", iterator_hint: str = "for an iterator use encode_iter"
) -> Texts:
    """A single str as a list of one; the tokenizer checks each element.

    Args:
        texts: a str, a list or tuple, or a column of texts, of which a list is made: a pandas or
            polars Series, an Arrow array, a numpy array [N] of strings or objects. What is missing
            in a column stays missing (None, NaN, NA), it never becomes a text.
        name: of the argument, in messages; iterator_hint: what to do with an iterator instead.

    Raises:
        InputError: anything else.
    """
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, list | tuple):
        return texts  # pyright: ignore[reportUnknownVariableType]
    values = _column(texts)
    if values is None:
        hint = f"; {iterator_hint}" if hasattr(texts, "__next__") else ""
        raise InputError(f"{name}: expected a str or a list of str, found {_found(texts)}{hint}")
    return values


def narrowed(values: NDArray[Any], dtype: str, name: str) -> NDArray[Any]:
    """Finite values in another dtype, themselves where it is theirs.

    Raises:
        InputError: that dtype has no room for them; names the argument that asks for it.
    """
    with np.errstate(over="ignore"):
        found = values.astype(dtype, copy=False)
    if found.itemsize < values.itemsize and not np.isfinite(found).all():
        most = abs(values).max()
        raise InputError(f"{name}: expected {values.dtype} for values to {most:.3g}, found {dtype}")
    return found


def check_iterable(texts: Any) -> Iterable[Any]:
    """Any iterable of texts; a column as `check_texts` takes it, a single str not."""
    if isinstance(texts, str):
        raise InputError("texts: expected an iterable of texts, found a single str")
    values = _column(texts)
    return texts if values is None else values


def _column(value: Any) -> list[Any] | None:
    """The values of a column that may hold texts, None for anything else.

    A column is known by its methods, so that nobody's package is imported for it.
    """
    if (kind := _numpy_kind(value)) is not None:  # numpy and pandas
        # Nothing has a type of its own: numpy says float64, pandas object.
        texts = value.ndim == 1 and (kind in "OTU" or len(value) == 0)
        return value.tolist() if texts and hasattr(value, "tolist") else None
    if hasattr(value, "type") and hasattr(value, "to_pylist"):  # Arrow; its tables have no type
        return value.to_pylist()
    if hasattr(value, "dtype") and hasattr(value, "to_list"):  # polars
        return value.to_list()
    return None


def _found(value: Any) -> str:
    kind = type(value).__name__
    if _numpy_kind(value) is None:
        return kind
    return f"{kind} of {value.dtype}" + (f" [{value.ndim}-D]" if value.ndim != 1 else "")


def _numpy_kind(value: Any) -> str | None:
    """The letter of what has a numpy dtype or one made after it, else None."""
    kind = getattr(getattr(value, "dtype", None), "kind", None)
    return kind if isinstance(kind, str) and isinstance(getattr(value, "ndim", None), int) else None


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
