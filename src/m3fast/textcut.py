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
"""

from __future__ import annotations

import json
import re
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tokenizers

# Letters of the large scripts that stand alone: each begins a grapheme cluster and ends one, no
# Unicode normal form joins it to a neighbour of this set or gives it a space at either end.
_LETTERS = (
    "0-9A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u02af\u0388-\u038a\u038e-\u03a1\u03a3-\u03ce"
    "\u0400-\u0481\u048a-\u04ff\u0531-\u0556\u0561-\u0586\u05d0-\u05ea\u0621-\u063a\u0641-\u064a"
    "\u0671-\u06d3\u0904-\u0939\u0985-\u09b9\u0a85-\u0ab9\u0b85-\u0bb9\u0c05-\u0c39\u0c85-\u0cb9"
    "\u0e01-\u0e30\u0e32\u0e81-\u0eae\u1000-\u102a\u10d0-\u10f0\u1200-\u1248\u1780-\u17b3"
    "\u1e00-\u1e99\u1ea0-\u1ef9\u3041-\u3096\u30a1-\u30fa\u3400-\u4dbf\u4e00-\u9fa5\uac00-\ud7a3"
)
_SAFE = "!-~" + _LETTERS[len("0-9A-Za-z") :]
_STOPS = ",.;:!?\u3002\uff0c\u3001"
# Scripts whose letters no version of Unicode has moved out of \p{L} and \p{N}.
_WORD = "0-9A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u0400-\u0481\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5"
_HAN = "\u4e00-\u9fa5"
_JOINT = re.compile(f"(?<=[{_SAFE}])(?=[{_SAFE}])")
_SAFE_RUN = re.compile(f"[{_SAFE}]+")

_LOCAL_NORMALIZERS = {
    "Precompiled", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "BertNormalizer",
    "Strip", "Nmt",
}  # fmt: skip
_SPLITTERS = {"WhitespaceSplit", "Whitespace", "BertPreTokenizer", "Metaspace", "ByteLevel"}
_STOP_SPLITTERS = {"Whitespace", "BertPreTokenizer", "ByteLevel"}
_CANDIDATES = 64  # joints tried per node search; Thai and Chinese need 1 to 10
_GRAPHEME = 8  # more than the characters over which a grapheme can alter its neighbours


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

    def ends(self, text: str, size: int, windows: bool) -> list[int]:
        """Ends of prefixes of `text` whose tokens, as far as all share them, begin its own.

        Args:
            text: the text.
            size: characters wanted; taken larger where no safe place is near.
            windows: allow kind 3, which costs as many prefixes as the longest piece has characters.

        Returns:
            One safe end, the ends of one window, or `[len(text)]`.
        """
        while self._split_point is not None and size < len(text):
            place = self._last_split(text, size)
            if place is None and self._nodes_hold:
                place = self._last_node(text, size)
                # A window is tokenised once per end: shorter texts cost less as a whole.
                dear = len(text) <= size * self._longest
                if place is None and windows and not dear and (ends := self._window(text, size)):
                    return ends
            if place is not None:
                return [place]
            size *= 2
        return [len(text)]

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
        # The surroundings are normalised between joints, where normalisation can be cut too.
        span = self._longest + self._longest_added + _GRAPHEME
        low, high = 0, len(text)
        if place > span:
            match = _JOINT.search(text, max(1, place - 4 * span), place - span + 1)
            if match is None:
                return False
            low = match.start()
        if high - place > span:
            match = _JOINT.search(text, place + span, place + 4 * span)
            if match is None:
                return False
            high = match.start()
        left, right = self._normal(text[low:place]), self._normal(text[place:high])
        more = self._longest_added
        around = text[max(0, low - more) : high + more], left + right
        if any(token in side for token in self._added for side in around):
            return False
        if (low and len(left) < self._longest) or (high < len(text) and len(right) < self._longest):
            return False
        known = self._backend.token_to_id
        for i in range(1, self._longest):
            for k in range(1, self._longest - i + 1):
                piece = left[-i:] + right[:k]
                # Any of these characters may be a word's first: words begin with U+2581.
                if known(piece) is not None or known("\u2581" + piece) is not None:
                    return False
        return True

    def _window(self, text: str, size: int) -> list[int] | None:
        """Kind 3: as many ends up to `size` as the longest piece has characters."""
        span = self._longest + self._longest_added + _GRAPHEME
        low, high = size - span - 1, size + span
        if low < 0 or not _SAFE_RUN.fullmatch(text, low, high):
            return None
        around = text[low:high]
        # Unchanged characters: consecutive places in the text are consecutive in the word.
        if self._normal(around) != around or any(token in around for token in self._added):
            return None
        return list(range(size - self._longest + 1, size + 1))

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
