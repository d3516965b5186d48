"""Checks of what a caller hands in, and texts cut into windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from m3fast.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    Texts: TypeAlias = "Sequence[str | Sequence[int]] | CheckedTexts"


class CheckedTexts(list["str | NDArray[np.int32]"]):
    """Texts, or int32 ids in place of some, that `Tokenizer.check` has found to be well formed."""


def check_positive(name: str, value: int) -> None:
    """InputError naming the argument unless it is an integer above 0."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name}: expected a positive integer, found {value!r}")


def check_padded(
    ids: Any, mask: Any, vocab_size: int, max_length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [B, L] as int32 or int64 and a bool mask of their shape, all true for None.

    Raises:
        InputError: a wrong type, dtype or shape, an id beyond the vocabulary, a row too long.
    """
    for name, value in (("input_ids", ids), ("attention_mask", ids if mask is None else mask)):
        if not isinstance(value, torch.Tensor):
            raise InputError(f"{name}: expected a tensor, found {type(value).__name__}")
        if value.is_floating_point() or value.is_complex():
            raise InputError(f"{name}: expected integers, found {value.dtype}")
        if value.ndim != 2 or value.shape != ids.shape:
            raise InputError(f"{name}: expected shape [B, L], found {list(value.shape)}")
    mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.to(ids.device).ne(0)
    ids = ids if ids.dtype == torch.int32 else ids.long()
    used = ids[mask]
    low, high = (int(v) for v in used.aminmax()) if len(used) else (0, 0)
    if not 0 <= low <= high < vocab_size:
        raise InputError(f"input_ids: expected 0 to {vocab_size - 1}, found {low} to {high}")
    if ids.shape[1] > max_length:
        raise InputError(
            f"input_ids: expected at most {max_length} columns, found {ids.shape[1]}"
        )
    return ids, mask


def check_texts(
    texts: Any, name: str = "texts", iterator_hint: str = "for an iterator use encode_iter"
) -> Sequence[str | Sequence[int]]:
    """A single str as a list of one; `Tokenizer.check` looks at each element.

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


def check_text(i: int, text: Any, id_limit: int) -> str | NDArray[np.int32]:
    """texts[i] as a str, or its ids as an array of our own.

    Raises:
        InputError: neither Unicode text nor ids below `id_limit`.
    """
    if isinstance(text, str):
        try:
            _ = text.isascii() or text.encode()
        except UnicodeEncodeError as error:
            found = f"a lone surrogate U+{ord(text[error.start]):04X} at {error.start}"
            raise InputError(f"texts[{i}]: expected Unicode text, found {found}") from None
        return text
    wanted = f"texts[{i}]: expected a str or a sequence of token ids, found"
    if not isinstance(text, Sequence | np.ndarray) or isinstance(text, bytes | bytearray):
        raise InputError(f"{wanted} {type_name(text)}")
    try:
        ids: NDArray[Any] = np.asarray(text)
    except (ValueError, OverflowError):  # ragged lists, integers beyond any id
        ids = np.empty((0, 0))
    if ids.size == 0 and ids.ndim == 1:
        raise InputError(f"{wanted} an empty {type_name(text)}")
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise InputError(f"{wanted} a {type_name(text)} that is not a flat one of ids")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= id_limit:
        bad = low if low < 0 else high
        raise InputError(f"texts[{i}]: expected ids from 0 to {id_limit - 1}, found {bad}")
    return ids.astype(np.int32)


def type_name(value: object) -> str:
    """What a value is called in a message."""
    return "None" if value is None else type(value).__name__


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
    texts: Iterable[Any], max_length: int, most_texts: int, most_characters: int
) -> Iterator[list[Any]]:
    """Consecutive texts, as many as are worked on together."""
    window: list[Any] = []
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
