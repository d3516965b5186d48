"""Where a long text may be cut so that the tokens of its beginning stay what they were.

A place p is safe when `tokens(text)` begins with `tokens(text[:p])`. Three kinds are proven here,
and only for tokenizers whose every stage is known; any other is given the whole text.

1. *Split points*: the pre-tokenizer cuts there whatever follows, such as before one space between
   two letters. Words are tokenized one by one, so the words before p do not depend on the rest.
2. *Nodes* of a Unigram word. The best path to a position depends only on the text before it, and
   if no piece of the vocabulary lies across p, every path passes through p.
3. *Windows* of a Unigram word. No step of a path is longer than the longest piece, so of that many
   consecutive positions the best path of the whole text passes through one: what the best paths
   to all of them have in common at their start, the whole text has too.

A last unknown token may grow, the next characters being fused into it, but its id stays.

All three speak of the normalised text, in which one character of the text may be eighteen, with
spaces among them. So a prefix may also end in the *middle* of what a character becomes: cut at a
joint, a place that normalisation does not look across, and append the beginning m of what follows,
written out. Where m is nothing but safe letters and single spaces, it is its own normal form and
meets what precedes at a joint, so that `normal(text[:p] + m) = normal(text[:p]) + m`, which begins
the text's normal form; the end of m then is a place of one of the three kinds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from m3fast.text.characters import LONG_FORM, size_bound
from m3fast.text.nodes import UnigramNodes
from m3fast.text.normalizer import Normalizer
from m3fast.text.splits import SplitPoints

if TYPE_CHECKING:
    import tokenizers

_WORTH = 1 << 17  # normalised characters that cost more than searches for places among them


class TextCutter:
    """Finds safe places in texts for one tokenizer. Stateless after construction."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._normalizer = normalizer = Normalizer(backend)
        contents = {token.content for token in backend.get_added_tokens_decoder().values()}
        added = (contents | {normalizer.normal(c) for c in contents}) - {""}
        self._splits = SplitPoints(backend, normalizer.normal, added)
        self._nodes = UnigramNodes(backend, normalizer, self._splits, added)

    def starts(self, text: str, size: int, windows: bool, most: int | None = None) -> list[str]:
        """Strings whose tokens, as far as all share them, begin those of `text`.

        Args:
            text: the text.
            size: normalised characters wanted; up to six times as many where the text itself
                is cut, and more where no safe place is near.
            windows: allow kind 3, which costs as many strings as the longest piece has characters.
            most: size from which the search is given up; None to go on to the text's end.

        Returns:
            One prefix, those of one window, or `[text]`.
        """
        if self._splits.pattern is None:
            return [text]
        most = len(text) if most is None else most
        worth, tried = size_bound(text) > _WORTH, False
        while size <= most and (end := self._end(text, size)) < len(text):
            place = self._splits.last(text, end)
            if place is None and self._nodes.hold and (worth or not tried):
                tried = True
                place = self._nodes.last(text, end) if end >= size else None
                if place is None and worth:
                    found = self._nodes.written_out(text, size, windows)
                    if found is not None:
                        return found
            if place is not None:
                return [text[:place]]
            size *= 2
        return [text]

    def normal_size(self, text: str, most: int) -> int:
        """Characters of the normalised text; more than `most` where there are more."""
        return self._normalizer.size(text, most)

    @property
    def cuts(self) -> bool:
        """True if it ever finds a place."""
        return self._splits.pattern is not None

    def _end(self, text: str, size: int) -> int:
        """Where to look for a place, without normalising what is likely to stay as long."""
        far = size_bound(text, size) > 2 * LONG_FORM * min(size, len(text))
        return self._normalizer.raw_size(text, size) if far else size


def common_start(prefixes: list[list[int]]) -> list[int]:
    """What all begin with: for the ids of safe prefixes, what the text's own begin with."""
    first, last = min(prefixes), max(prefixes)
    n = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:n]
