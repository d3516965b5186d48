"""Places in a Unigram word that its best path is sure to pass: kinds 2 and 3 of `cuts`."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from m3fast.text.characters import JOINT, SAFE_WORDS, WIDE_JOINT
from m3fast.text.splits import is_splitting

if TYPE_CHECKING:
    import tokenizers

    from m3fast.text.normalizer import Normalizer
    from m3fast.text.splits import SplitPoints

_KEEPING_NORMALIZERS = {"Precompiled", "NFC", "NFD", "NFKC", "NFKD", "Lowercase"}
_CANDIDATES = 64  # joints tried per node search; Thai and Chinese need 1 to 10
_GRAPHEME = 8  # more than the characters over which a grapheme can alter its neighbours


class UnigramNodes:
    """The nodes of one tokenizer, if its model is a Unigram one.

    Attributes:
        joint: pattern of the places that its normaliser does not look across.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        normalizer: Normalizer,
        points: SplitPoints,
        added: set[str],
    ) -> None:
        """`added` are the added tokens, also normalised."""
        self._backend, self._added = backend, added
        self._normal, self._raw_size = normalizer.normal, normalizer.raw_size
        self._unigram = (
            points.pattern is not None
            and type(backend.model).__name__ == "Unigram"
            and all(
                s["type"] == "WhitespaceSplit" or s.get("replacement") == "\u2581"
                for s in points.splitters
            )
        )
        keeping = all(n["type"] in _KEEPING_NORMALIZERS for n in points.normalizers)
        self.joint = WIDE_JOINT if keeping else JOINT
        # What parts two words of normalised text, whatever stands beside it.
        marks = any(s["type"] == "Metaspace" and is_splitting(s) for s in points.splitters)
        self._spaces = (" ", "\u2581") if marks else (" ",)

    def last(self, text: str, size: int) -> int | None:
        """A joint before `size` that no piece of the vocabulary lies across."""
        low = max(1, size - 4 * _CANDIDATES)
        joints = [m.start() for m in JOINT.finditer(text, low, size)][-_CANDIDATES:]
        return next((p for p in reversed(joints) if self.is_node(text, p)), None)

    def is_node(self, text: str, place: int) -> bool:
        sides = self._sides(text, place)
        if sides is None:
            return False
        (low, left), (high, right) = sides
        if (low and len(left) < self._longest) or (high < len(text) and len(right) < self._longest):
            return False
        return not self._crossed(left, right)

    def _sides(self, text: str, place: int) -> tuple[tuple[int, str], tuple[int, str]] | None:
        """Where the surroundings of a joint end, and their normal forms; None beside added tokens.

        The surroundings are cut at joints, where normalisation can be cut too.
        """
        span = self._longest + self._longest_added + _GRAPHEME
        low, high = 0, len(text)
        if place > span:
            match = self.joint.search(text, max(1, place - 4 * span), place - span + 1)
            if match is None:
                return None
            low = match.start()
        if high - place > span:
            match = self.joint.search(text, place + span, place + 4 * span)
            if match is None:
                return None
            high = match.start()
        left, right = self._normal(text[low:place]), self._normal(text[place:high])
        more = self._longest_added
        around = (
            text[max(0, low - more) : high + more],
            text[max(0, low - more) : place] + right,
            left + right,
        )
        if any(token in side for token in self._added for side in around):
            return None
        return (low, left), (high, right)

    def _crossed(self, left: str, right: str) -> bool:
        """True if a piece of the vocabulary lies across the place between the two."""
        known = self._backend.token_to_id
        for i in range(1, self._longest):
            for k in range(1, self._longest - i + 1):
                piece = left[-i:] + right[:k]
                # Any of these characters may be a word's first: words begin with U+2581.
                if known(piece) is not None or known("\u2581" + piece) is not None:
                    return True
        return False

    def written_out(self, text: str, size: int, windows: bool) -> list[str] | None:
        """Prefixes to a joint with the beginning of what follows in its normal form."""
        longest, tries = self._longest, _CANDIDATES // 2
        found: list[str] | None = None
        end = self._raw_size(text, size)
        joints = self.joint.finditer(text, max(1, end - 4 * _CANDIDATES), end)
        for place in reversed([m.start() for m in joints][-_CANDIDATES // 4 :]):
            sides = self._sides(text, place)
            run = sides and SAFE_WORDS.match(sides[1][1])
            if sides is None or run is None:
                continue
            (low, left), (high, right) = sides
            written = run[0]
            if self._normal(written) != written or (low and len(left) < longest):
                continue
            before, stop = text[:place], len(written)
            if (space := written.find(" ")) > 0:  # kind 1
                return [before + written[:space]]
            if right[stop : stop + 1] in self._spaces:
                return [before + written]
            after = len(right) - (0 if high == len(text) else longest)
            for k in range(1, min(stop, after)):  # kind 2
                tries -= 1
                if tries >= 0 and not self._crossed(left + right[:k], right[k:]):
                    return [before + written[:k]]
            # A window is tokenized once per end: shorter texts cost less as a whole.
            dear = len(text) <= end * longest
            if windows and not dear and found is None and stop >= longest:  # kind 3
                found = [before + written[:k] for k in range(1, longest + 1)]
        return found

    @cached_property
    def _longest(self) -> int:
        """Characters of the longest piece of the vocabulary."""
        piece = self._backend.id_to_token
        return max(len(piece(i) or "") for i in range(self._backend.get_vocab_size()))

    @cached_property
    def _longest_added(self) -> int:
        return max(map(len, self._added), default=0)

    @cached_property
    def hold(self) -> bool:
        """True if kinds 2 and 3 are proven for this tokenizer."""
        if not self._unigram:
            return False
        try:  # a noncharacter is in no vocabulary
            tokens = self._backend.model.tokenize("\U0010ffff")
        except Exception:  # tokenizers raises no narrower class; here: a model without <unk>
            return False
        # With byte fallback the unknown character comes out as its bytes.
        return [t.value for t in tokens] == ["\U0010ffff"]
