"""The normaliser of a tokenizer, and how long texts are once it has worked on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tokenizers

_STEP = 256  # characters normalised at a time to see how many they become


class Normalizer:
    """Stateless after construction."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend

    def normal(self, text: str) -> str:
        """The text's normal form."""
        normalizer = self._backend.normalizer
        return text if normalizer is None else normalizer.normalize_str(text)

    def size(self, text: str, most: int) -> int:
        """Characters of the normalised text; more than `most` where there are more.

        Normalised in pieces: near enough where a piece ends between two that belong together.
        What the normaliser drops counts as well.
        """
        total, step = 0, 16 * _STEP
        for i in range(0, len(text), step):
            if total > most:
                break
            piece = text[i : i + step]
            total += max(len(piece), len(self.normal(piece)))  # what is dropped costs too
        return total

    def raw_size(self, text: str, size: int) -> int:
        """Characters of `text` that become about `size`."""
        total = place = 0
        while total < size and place < len(text):
            total += len(self.normal(text[place : place + _STEP]))
            place += _STEP
        return min(place, size)
