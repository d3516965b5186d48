"""Characters that may stand beside a cut, against the normalisers themselves."""

from __future__ import annotations

import random
import re
import unicodedata

import pytest
import tokenizers
from smalltokenizers import (
    SHARED,
)
from tokenizers import normalizers

from m3fast.text.characters import ENDS, SAFE, size_bound


@pytest.mark.parametrize("name", ["NFC", "NFKC", "NFD", "NFKD", "Bert", "Precompiled"])
def test_safe_letters_are_normalised_alone(name: str) -> None:
    """Any two neighbours, with or without a space between, as if each stood by itself."""
    if name == "Precompiled":
        if not SHARED.is_dir():
            pytest.skip("no shared/data beside the checkout")
        file = SHARED / "tokenizer" / "tokenizer.json"
        normalizer = tokenizers.Tokenizer.from_file(str(file)).normalizer
    else:
        make = {"Bert": normalizers.BertNormalizer}.get(name) or getattr(normalizers, name)
        normalizer = make()
    letters = re.findall(f"[{SAFE}]", "".join(map(chr, range(0x110000))))
    alone = {c: normalizer.normalize_str(c) for c in letters}
    assert all(n.strip() if name == "Bert" else n and n == n.strip() for n in alone.values())
    draw = random.Random(0)
    for joint in ("", " "):
        draw.shuffle(letters)
        together = normalizer.normalize_str(joint.join(letters))
        assert together == joint.join(alone[c] for c in letters)


@pytest.mark.parametrize("name", ["NFC", "NFKC", "NFD", "NFKD", "Precompiled"])
def test_wide_joints_are_not_looked_across(name: str) -> None:
    if name == "Precompiled":
        if not SHARED.is_dir():
            pytest.skip("no shared/data beside the checkout")
        file = SHARED / "tokenizer" / "tokenizer.json"
        normal = tokenizers.Tokenizer.from_file(str(file)).normalizer.normalize_str
    else:
        normal = getattr(normalizers, name)().normalize_str
    everything = "".join(map(chr, range(0x110000)))
    letters = re.findall(f"[{SAFE}]", everything)
    ends = sorted({*re.findall(f"[{ENDS}]", everything)} - {*letters})
    draw, pool = random.Random(3), letters + ends
    for end in ends * 60:
        left, right = "".join(draw.choices(pool, k=3)), draw.choice(letters)
        right += "".join(draw.choices(pool, k=3))
        for a, b in ((left + end, right), (left, " " + right), (left, "\n" + right)):
            assert normal(a + b) == normal(a) + normal(b), (a, b)


def test_safe_letters_meet_as_unicode_has_it() -> None:
    """No normal form of one begins with what composes with, or moves before, the one ahead."""
    seconds = {*map(chr, range(0x1161, 0x1176)), *map(chr, range(0x11A8, 0x11C3))}
    for c in map(chr, range(0x110000)):
        parts = unicodedata.decomposition(c).split()
        if len(parts) == 2 and "<" not in parts[0]:
            seconds.add(chr(int(parts[1], 16)))
    for c in re.findall(f"[{SAFE}]", "".join(map(chr, range(0x110000)))):
        assert unicodedata.category(c)[0] not in "MZC" or unicodedata.category(c) == "Cn"
        for form in ("NFD", "NFKD"):
            first = unicodedata.normalize(form, c)[0]
            assert not unicodedata.combining(first) and first not in seconds


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_size_bound(form: str) -> None:
    for c in map(chr, range(0x110000)):
        assert len(unicodedata.normalize(form, c)) <= size_bound(c)
    assert size_bound("abc\ufdfa" * 9, 8) == 8 * 7 + 2 * 11
    assert size_bound("abc", 2) == 2 and size_bound("abc") == 3
