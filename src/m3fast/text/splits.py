"""Split points: places where a pre-tokenizer cuts whatever follows, kind 1 of `cuts`."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from m3fast.text.characters import HAN, MARK_ENDS, SAFE, STOPS, WORD

if TYPE_CHECKING:
    from collections.abc import Callable

    import tokenizers

_LOCAL_NORMALIZERS = {
    "Precompiled", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "BertNormalizer",
    "Strip", "Nmt",
}  # fmt: skip
_SPLITTERS = {"WhitespaceSplit", "Whitespace", "BertPreTokenizer", "Metaspace", "ByteLevel"}
_STOP_SPLITTERS = {"Whitespace", "BertPreTokenizer", "ByteLevel"}


class SplitPoints:
    """The split points of one tokenizer.

    Attributes:
        pattern: of zero width, matches at each of them; None where a stage or an added token
            forbids it.
        normalizers, splitters: settings of the stages, in order.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, normal: Callable[[str], str], added: set[str]
    ) -> None:
        """`normal` gives a text's normal form, `added` are the added tokens, also normalised."""
        self.normalizers = _stages(backend.normalizer, "normalizers")
        self.splitters = _stages(backend.pre_tokenizer, "pretokenizers")
        self.pattern = self._pattern(backend, normal, added)

    def last(self, text: str, size: int) -> int | None:
        """The last split point in text[size // 2 : size], searched backwards in short steps."""
        pattern, step = self.pattern, 256
        if pattern is None:
            return None
        for end in range(size, size // 2, -step):
            places = [m.start() for m in pattern.finditer(text, max(0, end - step), end + 2)]
            if places:
                return places[-1]
        return None

    def _pattern(
        self, backend: tokenizers.Tokenizer, normal: Callable[[str], str], added: set[str]
    ) -> re.Pattern[str] | None:
        """Kind 1 as a pattern of zero width; None where a stage or an added token forbids it."""
        normalizers, splitters = self.normalizers, self.splitters
        words = {s["type"] for s in splitters if s["type"] in _SPLITTERS and is_splitting(s)}
        bert = any(n["type"] == "BertNormalizer" for n in normalizers)
        content = "".join(added)
        if (
            not words
            or any(s["type"] not in _SPLITTERS | {"Punctuation", "Digits"} for s in splitters)
            or not all(map(_is_local, normalizers))
            or (bert and len(normalizers) > 1)  # it adds spaces, which another stage might merge
            or re.search(r"\s", content)
        ):
            return None
        # A newline splits only where the normaliser makes it a space or the splitter takes it.
        pieces = backend.pre_tokenizer.pre_tokenize_str(normal("a\nb"))
        spaces = " \n" if len(pieces) > 1 else " "
        # Two letters: the second then is a cluster alone, not one normalised with what precedes it.
        places = [f"(?<=[{SAFE}][{SAFE}])(?=[{spaces}][{SAFE}])"]
        # A mark belongs to the letter before it, and no normal form joins it to a space after it.
        places += [f"(?<=[{SAFE}]{marks})(?= [{SAFE}])" for marks in MARK_ENDS]
        if words & _STOP_SPLITTERS and not set(STOPS) & set(content):
            places.append(f"(?<=[{WORD}][{WORD}])(?=[{STOPS}])")
        if bert and normalizers[0]["handle_chinese_chars"] and not re.search(f"[{HAN}]", content):
            places.append(f"(?<=[{HAN}])(?=[{HAN}])")
        return re.compile("|".join(places))


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


def is_splitting(splitter: dict[str, Any]) -> bool:
    """True unless its settings keep a Metaspace or ByteLevel from splitting."""
    return splitter.get("split", True) and splitter.get("use_regex", True)
