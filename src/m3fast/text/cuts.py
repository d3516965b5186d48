"""Where a long text may be cut so that the tokens of its beginning stay what they were.

A place p is safe when `tokens(text)` begins with `tokens(text[:p])`. Three kinds are proven here,
and only for tokenizers whose every stage is known; any other is given the whole text.

1. *Split points*: the pre-tokenizer cuts there whatever follows, such as before one space between
   two letters. Words are tokenised one by one, so the words before p do not depend on the rest.
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

import json
import re
from functools import cached_property
from typing import TYPE_CHECKING, Any

from m3fast.errors import TextSizeError

if TYPE_CHECKING:
    import tokenizers

# Characters that stand alone: each begins a grapheme cluster and ends one, and no Unicode normal
# form joins it to a neighbour of this set or gives it a space at either end. Most scripts, and
# what NFKC writes out: ligatures, squares, circled and half- or fullwidth forms.
_LETTERS = (
    "0-9A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u02af\u0388-\u038a\u038e-\u03a1\u03a3-\u03ce"
    "\u0400-\u0481\u048a-\u04ff\u0531-\u0556\u0561-\u0586\u05d0-\u05ea\u0620-\u064a"
    "\u0660-\u066f\u0671-\u06d3\u06ee-\u06ff\u0712-\u072f\u074d-\u07a5\u07c0-\u07ea\u0904-\u0939"
    "\u0966-\u096f\u0985-\u09b9\u0a05-\u0a39\u0a85-\u0ab9\u0b05-\u0b39\u0b85-\u0bb9\u0c05-\u0c39"
    "\u0c85-\u0cb9\u0d05-\u0d3a\u0d85-\u0dc6\u0e01-\u0e30\u0e32\u0e81-\u0eae\u0f04-\u0f12\u0f20-\u0f33"
    "\u0f40-\u0f6c\u1000-\u102a\u10a0-\u10ff\u1200-\u135a\u13a0-\u13f5\u1401-\u167f\u1681-\u169a"
    "\u16a0-\u16f0\u1780-\u17b3\u1820-\u1877\u1950-\u1974\u1c5a-\u1c7d\u1e00-\u1e99\u1ea0-\u1ef9"
    "\u1f00-\u1fbc\u2010-\u2016\u2018-\u2027\u2030-\u203d\u203f-\u205e\u2070-\u208e\u20a0-\u20ba"
    "\u2100-\u2189\u2190-\u23f3\u2460-\u2580\u2582-\u27ff\u2900-\u2b4c\u2d30-\u2d67\u3001-\u3029"
    "\u3031-\u303d\u3041-\u3096\u30a0-\u30ff\u3105-\u312d\u3190-\u31ba\u3200-\u321e\u3220-\u32fe"
    "\u3300-\u9fa5\ua000-\ua48c\ua4d0-\ua62b\uac00-\ud7a3\uf900-\ufa6d\ufa70-\ufad9"
    "\ufb00-\ufb06\ufb13-\ufb17\ufb1f-\ufb4f\ufb50-\ufbb1\ufbd3-\ufc5d\ufc64-\ufd3f\ufd50-\ufd8f"
    "\ufd92-\ufdc7\ufdf0-\ufdfc\ufe30-\ufe48\ufe4d-\ufe6b\ufe80-\ufefc\uff01-\uff9d\uffe0-\uffe2"
    "\uffe4-\uffee\U00010330-\U00010340\U00012000-\U00012399\U00013000-\U0001342e"
    "\U0001d400-\U0001d6a3\U0001d6a8-\U0001d7cb\U0001d7ce-\U0001d7ff\U0001f100-\U0001f19a"
    "\U0001f200-\U0001f251\U0001f300-\U0001f3fa\U0001f400-\U0001f6c5\U00020000-\U0002a6d6"
    "\U0002a700-\U0002b81d\U0002f800-\U0002fa1d"
)
_SAFE = "!-~" + _LETTERS[len("0-9A-Za-z") :]
# Marks that letters of these scripts carry at the ends of words.
_MARKS = (
    "\u0300-\u0344\u0591-\u05bd\u064b-\u0655\u0670\u0730-\u074a\u07a6-\u07b0\u07eb-\u07f3\u0900-\u0903"
    "\u093c\u093e-\u094d\u0981-\u0983\u09bc\u09be-\u09cd\u0a01-\u0a03\u0a3c-\u0a4d\u0a70\u0a71"
    "\u0a81-\u0a83\u0abc\u0abe-\u0acd\u0b01-\u0b03\u0b3c\u0b3e-\u0b4d\u0b82\u0bbe-\u0bcd\u0c01-\u0c03"
    "\u0c3e-\u0c4d\u0c82\u0c83\u0cbc\u0cbe-\u0ccd\u0d02\u0d03\u0d3e-\u0d4d\u0d82\u0d83\u0dca-\u0ddf"
    "\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0f71-\u0f7e\u0f90-\u0fbc\u102b-\u103e\u17b6-\u17d3"
)
_STOPS = ",.;:!?\u3002\uff0c\u3001"
# Scripts whose letters no version of Unicode has moved out of \p{L} and \p{N}.
_WORD = "0-9A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u0400-\u0481\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5"
_HAN = "\u4e00-\u9fa5"
_JOINT = re.compile(f"(?<=[{_SAFE}])(?=[{_SAFE}])")
# Where no stage strips, merges or drops: after a space, or after a mark that ends its cluster if a
# safe character follows, too; before a space as well.
_ENDS = _SAFE + " \t\n\u0300-\u0344\u3099\u309a\ufe0f\uff9e\uff9f\U0001f3fb-\U0001f3ff"
_WIDE_JOINT = re.compile(f"(?<=[{_ENDS}])(?=[{_SAFE} \t\n])")
_SAFE_RUN = re.compile(f"[{_SAFE}]+")
_SAFE_WORDS = re.compile(f"[{_SAFE}]+(?: [{_SAFE}]+)*")

_MARK_ENDS = (f"[{_MARKS}]", f"[{_MARKS}][{_MARKS}]")

_LOCAL_NORMALIZERS = {
    "Precompiled", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "BertNormalizer",
    "Strip", "Nmt",
}  # fmt: skip
_KEEPING_NORMALIZERS = {"Precompiled", "NFC", "NFD", "NFKC", "NFKD", "Lowercase"}
_SPLITTERS = {"WhitespaceSplit", "Whitespace", "BertPreTokenizer", "Metaspace", "ByteLevel"}
_STOP_SPLITTERS = {"Whitespace", "BertPreTokenizer", "ByteLevel"}
_CANDIDATES = 64  # joints tried per node search; Thai and Chinese need 1 to 10
_GRAPHEME = 8  # more than the characters over which a grapheme can alter its neighbours
_WORTH = 1 << 17  # normalised characters that cost more than searches for places among them
_STEP = 256  # characters normalised at a time to see how many they become
# Characters of the longest normal forms, compatibility ones included; all others have up to 7.
_LONG_FORMS, _LONG_FORM = {"\ufdfa": 18, "\ufdfb": 8}, 7


class TextCutter:
    """Finds safe places in texts for one tokenizer. Stateless after construction."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        normalizers = _stages(backend.normalizer, "normalizers")
        splitters = _stages(backend.pre_tokenizer, "pretokenizers")
        added = backend.get_added_tokens_decoder().values()
        contents = {t.content for t in added}
        self._added = (contents | {self._normal(c) for c in contents}) - {""}
        self._split_point = self._split_pattern(normalizers, splitters)
        self._unigram = (
            self._split_point is not None
            and type(backend.model).__name__ == "Unigram"
            and all(
                s["type"] == "WhitespaceSplit" or s.get("replacement") == "\u2581"
                for s in splitters
            )
        )

        keeping = all(n["type"] in _KEEPING_NORMALIZERS for n in normalizers)
        self._joint = _WIDE_JOINT if keeping else _JOINT
        # What parts two words of normalised text, whatever stands beside it.
        marks = any(s["type"] == "Metaspace" and _splits(s) for s in splitters)
        self._spaces = (" ", "\u2581") if marks else (" ",)

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
        if self._split_point is None:
            return [text]
        most = len(text) if most is None else most
        worth, tried = size_bound(text) > _WORTH, False
        while size <= most and (end := self._end(text, size)) < len(text):
            place = self._last_split(text, end)
            if place is None and self._nodes_hold and (worth or not tried):
                tried = True
                place = self._last_node(text, end) if end >= size else None
                if place is None and worth and (found := self._written_out(text, size, windows)):
                    return found
            if place is not None:
                return [text[:place]]
            size *= 2
        return [text]

    def normal_size(self, text: str, most: int) -> int:
        """Characters of the normalised text; more than `most` where there are more.

        Normalised in pieces: near enough where a piece ends between two that belong together.
        What the normaliser drops counts as well.
        """
        total, step = 0, 16 * _STEP
        for i in range(0, len(text), step):
            if total > most:
                break
            piece = text[i : i + step]
            total += max(len(piece), len(self._normal(piece)))  # what is dropped costs too
        return total

    @property
    def cuts(self) -> bool:
        """True if it ever finds a place."""
        return self._split_point is not None

    def _end(self, text: str, size: int) -> int:
        """Where to look for a place, without normalising what is likely to stay as long."""
        far = size_bound(text, size) > 2 * _LONG_FORM * min(size, len(text))
        return self._raw_size(text, size) if far else size

    def _raw_size(self, text: str, size: int) -> int:
        """Characters of `text` that become about `size`."""
        total = place = 0
        while total < size and place < len(text):
            total += len(self._normal(text[place : place + _STEP]))
            place += _STEP
        return min(place, size)

    def _split_pattern(
        self, normalizers: list[dict[str, Any]], splitters: list[dict[str, Any]]
    ) -> re.Pattern[str] | None:
        """Kind 1 as a pattern of zero width; None where a stage or an added token forbids it."""
        words = {s["type"] for s in splitters if s["type"] in _SPLITTERS and _splits(s)}
        bert = any(n["type"] == "BertNormalizer" for n in normalizers)
        content = "".join(self._added)
        if (
            not words
            or any(s["type"] not in _SPLITTERS | {"Punctuation", "Digits"} for s in splitters)
            or not all(map(_is_local, normalizers))
            or (bert and len(normalizers) > 1)  # it adds spaces, which another stage might merge
            or re.search(r"\s", content)
        ):
            return None
        # A newline splits only where the normaliser makes it a space or the splitter takes it.
        pieces = self._backend.pre_tokenizer.pre_tokenize_str(self._normal("a\nb"))
        spaces = " \n" if len(pieces) > 1 else " "
        # Two letters: the second then is a cluster alone, not one normalised with what precedes it.
        places = [f"(?<=[{_SAFE}][{_SAFE}])(?=[{spaces}][{_SAFE}])"]
        # A mark belongs to the letter before it, and no normal form joins it to a space after it.
        places += [f"(?<=[{_SAFE}]{marks})(?= [{_SAFE}])" for marks in _MARK_ENDS]
        if words & _STOP_SPLITTERS and not set(_STOPS) & set(content):
            places.append(f"(?<=[{_WORD}][{_WORD}])(?=[{_STOPS}])")
        if bert and normalizers[0]["handle_chinese_chars"] and not re.search(f"[{_HAN}]", content):
            places.append(f"(?<=[{_HAN}])(?=[{_HAN}])")
        return re.compile("|".join(places))

    def _last_split(self, text: str, size: int) -> int | None:
        """The last split point in text[size // 2 : size], searched backwards in short steps."""
        pattern, step = self._split_point, 256
        if pattern is None:
            return None
        for end in range(size, size // 2, -step):
            places = [m.start() for m in pattern.finditer(text, max(0, end - step), end + 2)]
            if places:
                return places[-1]
        return None

    def _last_node(self, text: str, size: int) -> int | None:
        """A joint before `size` that no piece of the vocabulary lies across."""
        low = max(1, size - 4 * _CANDIDATES)
        joints = [m.start() for m in _JOINT.finditer(text, low, size)][-_CANDIDATES:]
        return next((p for p in reversed(joints) if self._is_node(text, p)), None)

    def _is_node(self, text: str, place: int) -> bool:
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
            match = self._joint.search(text, max(1, place - 4 * span), place - span + 1)
            if match is None:
                return None
            low = match.start()
        if high - place > span:
            match = self._joint.search(text, place + span, place + 4 * span)
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

    def _written_out(self, text: str, size: int, windows: bool) -> list[str] | None:
        """Prefixes to a joint with the beginning of what follows in its normal form."""
        longest, tries = self._longest, _CANDIDATES // 2
        found: list[str] | None = None
        end = self._raw_size(text, size)
        joints = self._joint.finditer(text, max(1, end - 4 * _CANDIDATES), end)
        for place in reversed([m.start() for m in joints][-_CANDIDATES // 4 :]):
            sides = self._sides(text, place)
            run = sides and _SAFE_WORDS.match(sides[1][1])
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
            # A window is tokenised once per end: shorter texts cost less as a whole.
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
    def _nodes_hold(self) -> bool:
        """True if kinds 2 and 3 are proven for this tokenizer."""
        if not self._unigram:
            return False
        try:  # a noncharacter is in no vocabulary
            tokens = self._backend.model.tokenize("\U0010ffff")
        except Exception:  # tokenizers raises no narrower class; here: a model without <unk>
            return False
        # With byte fallback the unknown character comes out as its bytes.
        return [t.value for t in tokens] == ["\U0010ffff"]

    def _normal(self, text: str) -> str:
        normalizer = self._backend.normalizer
        return text if normalizer is None else normalizer.normalize_str(text)


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
        """Count a beginning of texts[i] that is to be tokenised.

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


def size_bound(text: str, stop: int | None = None) -> int:
    """No less than the characters of normalised text[:stop], for the normalisers known here."""
    size = len(text) if stop is None else min(stop, len(text))
    if text.isascii():
        return size
    more = sum((n - _LONG_FORM) * text.count(c, 0, size) for c, n in _LONG_FORMS.items())
    return _LONG_FORM * size + more


def common_start(prefixes: list[list[int]]) -> list[int]:
    """What all begin with: for the ids of safe prefixes, what the text's own begin with."""
    first, last = min(prefixes), max(prefixes)
    n = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:n]


def _stages(component: Any, key: str) -> list[dict[str, Any]]:
    """Settings of a normalizer or pre-tokenizer, sequences flattened."""
    if component is None:
        return []
    pending, stages = [json.loads(component.__getstate__())], list[dict[str, Any]]()
    while pending:
        stage = pending.pop(0)
        if stage["type"] == "Sequence":
            pending = stage[key] + pending
        else:
            stages.append(stage)
    return stages


def _is_local(normalizer: dict[str, Any]) -> bool:
    """True if it never looks across a joint, nor across one space between safe characters."""
    if normalizer["type"] == "Replace":
        return normalizer["pattern"] == {"Regex": " {2,}"}
    return normalizer["type"] in _LOCAL_NORMALIZERS


def _splits(splitter: dict[str, Any]) -> bool:
    """True unless its settings keep a Metaspace or ByteLevel from splitting."""
    return splitter.get("split", True) and splitter.get("use_regex", True)
