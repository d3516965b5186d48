"""Places where a text may be cut: split points, nodes and windows, one by one."""

from __future__ import annotations

from typing import Any

import pytest
import tokenizers
from smalltokenizers import Case, by_hand, metaspace, only, unigram
from tokenizers import normalizers, pre_tokenizers

from m3fast.text.characters import JOINT, WIDE_JOINT
from m3fast.text.cuts import TextCutter

pytestmark = pytest.mark.usefixtures("search_short_texts_too")

SPACES = pre_tokenizers.WhitespaceSplit()


def test_wide_joints_are_for_normalisers_that_keep_spaces() -> None:
    assert TextCutter(unigram())._nodes.joint is WIDE_JOINT
    assert TextCutter(unigram(resaved=True))._nodes.joint is JOINT  # it merges spaces


def test_a_search_can_be_given_up() -> None:
    text = "a" * 300 + " the fox" * 20
    assert TextCutter(by_hand("aa")).starts(text, 20, False) != [text]
    assert TextCutter(by_hand("aa")).starts(text, 20, False, most=100) == [text]


def test_a_node_has_no_piece_across() -> None:
    text = "xyz abcd xyz" * 20
    place = text.index("bcd", 100)  # between a and b

    def is_node(*pieces: str, **options: Any) -> bool:
        return TextCutter(by_hand(*pieces, **options))._nodes.is_node(text, place)

    assert is_node("bcd", "xyz", "\u2581a", "xyza")
    assert not is_node("ab")
    assert not is_node("\u2581ab")
    assert not is_node("\u2581abcd")  # the longest, its last characters behind the place
    before = TextCutter(by_hand("xyzab"))  # the longest, its first characters before the place
    assert not before._nodes.is_node("c" * 90 + "xyzab" + "c" * 90, 94)
    assert before._nodes.is_node("c" * 90 + "cyzab" + "c" * 90, 94)


def test_a_node_is_not_inside_an_added_token() -> None:
    for token in ("AB", "ab"):
        backend = by_hand(normalizer=normalizers.Lowercase())
        backend.add_tokens([tokenizers.AddedToken(token, normalized=True)])
        cutter = TextCutter(backend)
        assert not cutter._nodes.is_node("x" * 90 + "ab" + "x" * 90, 91)
        assert cutter._nodes.is_node("x" * 90 + "ba" + "x" * 90, 91)


def test_a_node_needs_enough_characters_around_it() -> None:
    """The normaliser takes the control characters away, so z and y end up beside a."""
    cutter = TextCutter(by_hand("zyab", normalizer=normalizers.Nmt()))
    gap = "\x01" * 30
    assert not cutter._nodes.is_node("zy" + gap + "ab" + "c" * 90, 33)
    assert not cutter._nodes.is_node("c" * 90 + "za" + gap + "yc", 91)


def test_a_window_is_as_long_as_the_longest_piece() -> None:
    text = "ab" * 200

    def lengths(backend: tokenizers.Tokenizer, text: str, size: int, windows: bool) -> list[int]:
        starts = TextCutter(backend).starts(text, size, windows)
        assert all(text.lower().startswith(start) for start in starts)
        return [len(start) for start in starts]

    backend = by_hand("ab", "ba", "ababa")
    found = lengths(backend, text, 60, True)
    assert len(found) == 5 and found == [*range(found[0], found[0] + 5)]
    assert 40 < found[0] < 64
    assert lengths(backend, text, 60, False) == [400]
    assert lengths(backend, text, 100, True) == [400]  # five prefixes of 100 cost more
    marked = ("a\u0301" + "ab\u0301") * 100  # every window meets a mark, which is not safe
    assert lengths(backend, marked, 60, True) == [500]
    lower = by_hand("ab", "ba", "ababa", normalizer=normalizers.Lowercase())
    assert lengths(lower, text.upper().lower(), 60, True) == found
    backend.add_tokens(["xab"])
    assert lengths(backend, "xab" * 200, 60, True) == [600]
    fallback = by_hand("ab", "ba", *(f"<0x{i:02X}>" for i in range(256)), byte_fallback=True)
    assert lengths(fallback, text, 60, True) == [400]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("abab cd", 4), ("abab  cd", None), ("abab \u0301cd", None), ("ab\u093e cd", 3),
        ("\u0600b cd", None), ("ab\ncd", None), ("abab,cd", None), ("abab", None), ("字字", None),
    ],
)  # fmt: skip
def test_split_points(text: str, place: int | None) -> None:
    assert TextCutter(by_hand())._splits.last(text, len(text)) == place


@pytest.mark.parametrize(
    ("pre_tokenizer", "place"),
    [(SPACES, 4), (pre_tokenizers.BertPreTokenizer(), 4), (metaspace(), None)],
)
def test_newlines_split_where_the_pipeline_says_so(pre_tokenizer: Any, place: int | None) -> None:
    backend = by_hand("b\nc")
    backend.pre_tokenizer = pre_tokenizer
    assert TextCutter(backend)._splits.last("abab\ncd", 7) == place


@pytest.mark.parametrize(("text", "place"), [("abab, cd", 4), ("字字。字", 2)])
@only("bert", "byte-level")
def test_stops_split_where_the_pipeline_says_so(case: Case, text: str, place: int) -> None:
    assert case.ours._cutter._splits.last(text, 4) == place
