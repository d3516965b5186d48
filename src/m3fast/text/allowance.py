"""What texts may cost to tokenize: a limit in normalised characters, per text and per call."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from m3fast.errors import TextSizeError
from m3fast.text.characters import size_bound

if TYPE_CHECKING:
    from collections.abc import Generator

    from m3fast.text.cuts import TextCutter

# Normalised characters allowed per text and per call, see `at_most`; None for any number.
_ALLOWED: ContextVar[tuple[int, int] | None] = ContextVar("allowed", default=None)
# A text of max_length tokens may have so many per token: sixteen times what most languages take.
_PER_TOKEN = 64


@contextmanager
def at_most(per_text: int, per_call: int) -> Generator[None]:
    """`Tokenizer.encode` raises TextSizeError for what would cost more normalised characters.

    Held by the context, not an argument, as callers reach `encode` by way of the engine's own.
    """
    token = _ALLOWED.set((per_text, per_call))
    try:
        yield
    finally:
        _ALLOWED.reset(token)


def allowance_of_call(cutter: TextCutter, max_length: int) -> Allowance | None:
    """What `at_most` allows the texts of one call; None for any number."""
    if (allowed := _ALLOWED.get()) is None:
        return None
    return Allowance(cutter, max(allowed[0], _PER_TOKEN * max_length), allowed[1])


class Allowance:
    """What the texts of one request may cost: normalised characters given to the tokenizer.

    Only the longest beginning of a text counts: shorter ones tried before it cost about as much
    again. What cannot be too much is not measured, so most requests pay nothing.

    Attributes:
        most_text: for one text.
    """

    def __init__(self, cutter: TextCutter, most_text: int, most: int) -> None:
        """At most `most_text` for a text that might be cut, `most` for all."""
        self._cutter, self._most = cutter, most
        self.most_text = most_text if cutter.cuts else most
        self._unmeasured: list[tuple[int, str]] = []
        self._sizes: dict[int, int] = {}
        self._sum = self._bound = 0  # measured, and no less than all there is

    def spend(self, i: int, start: str) -> None:
        """Count a beginning of texts[i] that is to be tokenized.

        Raises:
            TextSizeError: too much.
        """
        bound = size_bound(start)
        if bound > self.most_text and self._size(start) > self.most_text:
            raise TextSizeError(
                f"texts[{i}]: expected a place to cut it within {self.most_text} characters, "
                "normalised, found none: one word, or only spaces, marks or unknown characters"
            )
        self._unmeasured.append((i, start))
        self._bound += bound
        if self._bound <= self._most:
            return
        for k, each in self._unmeasured:
            before, size = self._sizes.get(k, 0), self._size(each)
            self._sizes[k] = max(before, size)
            self._sum += max(0, size - before)
        self._unmeasured = []
        if self._sum > self._most:
            raise TextSizeError(
                f"texts: expected at most {self._most} characters to tokenise, normalised, "
                "found more; send fewer texts at a time"
            )

    def _size(self, start: str) -> int:
        return len(start) if start.isascii() else self._cutter.normal_size(start, self.most_text)
