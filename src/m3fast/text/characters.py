"""Characters by how they meet their neighbours, as patterns, and how long normal forms are."""

from __future__ import annotations

import re

# Characters that stand alone: each begins a grapheme cluster and ends one, and no Unicode normal
# form joins it to a neighbour of this set or gives it a space at either end. Most scripts, and
# what NFKC writes out: ligatures, squares, circled and half- or fullwidth forms.
LETTERS = (
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
SAFE = "!-~" + LETTERS[len("0-9A-Za-z") :]
# Marks that letters of these scripts carry at the ends of words.
MARKS = (
    "\u0300-\u0344\u0591-\u05bd\u064b-\u0655\u0670\u0730-\u074a\u07a6-\u07b0\u07eb-\u07f3\u0900-\u0903"
    "\u093c\u093e-\u094d\u0981-\u0983\u09bc\u09be-\u09cd\u0a01-\u0a03\u0a3c-\u0a4d\u0a70\u0a71"
    "\u0a81-\u0a83\u0abc\u0abe-\u0acd\u0b01-\u0b03\u0b3c\u0b3e-\u0b4d\u0b82\u0bbe-\u0bcd\u0c01-\u0c03"
    "\u0c3e-\u0c4d\u0c82\u0c83\u0cbc\u0cbe-\u0ccd\u0d02\u0d03\u0d3e-\u0d4d\u0d82\u0d83\u0dca-\u0ddf"
    "\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0f71-\u0f7e\u0f90-\u0fbc\u102b-\u103e\u17b6-\u17d3"
)
STOPS = ",.;:!?\u3002\uff0c\u3001"
# Scripts whose letters no version of Unicode has moved out of \p{L} and \p{N}.
WORD = "0-9A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u0400-\u0481\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5"
HAN = "\u4e00-\u9fa5"
JOINT = re.compile(f"(?<=[{SAFE}])(?=[{SAFE}])")
# Where no stage strips, merges or drops: after a space, or after a mark that ends its cluster if a
# safe character follows, too; before a space as well.
ENDS = SAFE + " \t\n\u0300-\u0344\u3099\u309a\ufe0f\uff9e\uff9f\U0001f3fb-\U0001f3ff"
WIDE_JOINT = re.compile(f"(?<=[{ENDS}])(?=[{SAFE} \t\n])")
SAFE_WORDS = re.compile(f"[{SAFE}]+(?: [{SAFE}]+)*")

MARK_ENDS = (f"[{MARKS}]", f"[{MARKS}][{MARKS}]")

# Characters of the longest normal forms, compatibility ones included; all others have up to 7.
LONG_FORMS, LONG_FORM = {"\ufdfa": 18, "\ufdfb": 8}, 7


def size_bound(text: str, stop: int | None = None) -> int:
    """No less than the characters of normalised text[:stop], for the normalisers known here."""
    size = len(text) if stop is None else min(stop, len(text))
    if text.isascii():
        return size
    more = sum((n - LONG_FORM) * text.count(c, 0, size) for c, n in LONG_FORMS.items())
    return LONG_FORM * size + more
