"""What a long text costs: bounded by max_length, or refused where nothing bounds it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import tokenizers
from smalltokenizers import (
    SENTENCES,
    SPLIT,
    UNBROKEN,
    WORDS,
    Case,
    Spy,
    by_hand,
    frame,
    metaspace,
    only,
    rows,
)
from tokenizers import models

from m3fast.errors import TextSizeError
from m3fast.text.allowance import Allowance, at_most
from m3fast.text.cuts import TextCutter

pytestmark = pytest.mark.usefixtures("search_short_texts_too")

LONG = {
    "words": " ".join(WORDS),
    "chinese": UNBROKEN[2] + UNBROKEN[3],
    "thai": UNBROKEN[4],
    "lines": "\n".join(WORDS),
}


def _bounded(case: Case, text: str) -> None:
    """10 MB, of which the tokenizer sees a few characters per token wanted."""
    text *= 10_000_000 // len(text)
    with Spy(case) as spy:
        found = case.ours.encode([text, "the"], 512)
    assert found.truncated.tolist() == [True, False]
    assert 0 < spy.chars < 12 * 512
    case.plain.enable_truncation(512)
    assert rows(found)[0] == case.plain.encode(text[:20_000]).ids


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
@only("unigram", "resaved", "m3", "m3-resaved")
def test_cost_of_a_long_text_is_bounded(case: Case, text: str) -> None:
    _bounded(case, text)


BOMBS = ["\ufdfa", "\ufdfb", "\ufdf2", "\u33c2", "\u3316", "\ufb03", "\uff76\uff71", "\uff21\uff42"]
BOMBS += ["\ufdfa the ", "the\ufdfa\u3316", "\ufdfa\t\t", "\u3316 \ufdfb\ufb03"]


@pytest.mark.parametrize("text", BOMBS)
@only("m3", "m3-resaved")
def test_cost_of_characters_that_become_many_is_bounded(case: Case, text: str) -> None:
    """8 MB of text, up to 47 million characters when normalised."""
    if "resaved" in case.path.name and "\t" in text:
        pytest.skip("no joints where a stage merges spaces")
    text *= 8_000_000 // len(text.encode())
    with Spy(case) as spy, at_most(1 << 19, 10 << 20):
        found = case.ours.encode([text], 128)
    case.plain.enable_truncation(128)
    assert rows(found)[0] == case.plain.encode(text[:5_000]).ids
    # A window's sixteen ends, in two rounds; most texts take one of 700 characters.
    assert 0 < spy.normalised < 2 * 20 * 2 * 704


@only("added", "added-resaved", "bert", "byte-level", "granite")
def test_cost_of_words_is_bounded_everywhere(case: Case) -> None:
    _bounded(case, LONG["words"])


@only("bert", "byte-level", "granite")
def test_cost_of_text_without_spaces(case: Case) -> None:
    """BERT parts any two Han characters, the byte level a letter from a stop."""
    _bounded(case, LONG["chinese"] if case.ours.token_to_id("[CLS]") else SENTENCES[2] + "。")


def test_a_window_of_ends_bounds_text_without_nodes(tmp_path: Path) -> None:
    """All pairs of a and b are pieces: no place is a node, yet the paths join."""
    pieces = [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        "\u2581",
        "a",
        "b",
        "aa",
        "ab",
        "ba",
        "bb",
        "aab",
        "bba",
    ]
    scores = [0, 0, 0, 0, -1, -5, -5.3, -7.1, -6.2, -6.4, -7.7, -7.9, -8.3]
    backend = tokenizers.Tokenizer(models.Unigram(list(zip(pieces, scores, strict=True)), 3, False))
    backend.pre_tokenizer = metaspace()
    frame(backend, "<s>", "</s>")
    backend.save(str(tmp_path / "tokenizer.json"))
    case = Case(tmp_path)
    draw = random.Random(1)
    text = "".join(draw.choices("ab", k=60_000))
    with Spy(case) as spy:
        case.check([text], 100)
    assert 600 < spy.chars < 10_000
    for n in range(3, 40, 3):
        case.check([text[n:3_000], "ab" * 1_000, "aab" * 700, "a" * 1_500 + text[:900]], n)


@only("spaced-token")
def test_what_cannot_be_proven_safe_is_tokenized_whole(case: Case) -> None:
    text = "the fox is not one " * 1_000
    with Spy(case) as spy:
        case.check([text], 64)
    assert spy.chars == len(text)


# One word whose first tokens hang on its last, or hardly a token at all.
UNCUT = {"a": "a", "spaces": " ", "newlines": "\n", "marks": "\u0301", "dropped": "\u200b"}
UNCUT |= {"unknown": "\U0010fffd", "tags": "<s>", "jamo": "\u1100"}


@pytest.mark.parametrize("text", UNCUT.values(), ids=UNCUT)
@only("resaved", "m3", "m3-resaved")
def test_what_cannot_be_cut_is_refused_before_it_is_tokenized(case: Case, text: str) -> None:
    text *= 100_000
    with Spy(case) as spy, at_most(1 << 16, 1 << 20):
        if "m3" not in case.path.name and text[0] == "a":
            return  # this vocabulary has places between its letters
        with pytest.raises(TextSizeError, match=r"^texts\[1\]: expected a place .* 65536 char"):
            case.ours.encode(["the fox", text], 16)
        # Up to two ends of a window, in two rounds; no more than allowed in the last one.
        assert spy.chars < 40_000
        assert len(case.ours.encode(["the fox"], 16)) == 1
    with Spy(case) as spy:  # without a limit it takes what it takes
        case.check([text], 16)
    assert spy.chars >= len(text)


@only("m3")
def test_what_a_text_may_cost_grows_with_max_length(case: Case) -> None:
    with at_most(1, 1 << 20):
        case.check(["a" * 1_000, " " * 1_000], 16)
        with pytest.raises(TextSizeError, match="within 1024 characters"):
            case.ours.encode([" " * 2_000], 16)


@only("unigram", "byte-level", "m3")
def test_the_texts_of_a_call_are_charged_together(case: Case) -> None:
    """In normalised characters of what is tokenized, each text's once."""
    with at_most(1 << 19, 30_000):
        case.check(["the quick brown fox " * 1_000] * 40, 100)  # 20,000 characters of each
        case.check(["the fox " * 40] * 90, 300)
        case.check(["字典学习" * 50] * 140, 300)  # 28,000: measured, not guessed
        refused = [["the fox " * 50] * 90, ["字典学习" * 50] * 160]
        if case.path.name.startswith(("unigram", "m3")):
            refused.append(["\ufdfa" * 50] * 50)
            case.check(["\ufdfa" * 50] * 30, 300)
        for texts in refused:
            with pytest.raises(TextSizeError, match=r"^texts: expected at most 30000 characters"):
                case.ours.encode(texts, 300)


@only("m3", "bert", "byte-level")
def test_ordinary_texts_are_within_a_servers_limits(case: Case) -> None:
    prose = " ".join(WORDS) * 20_000
    with at_most(1 << 19, 10 << 20):
        assert case.ours.encode([prose, *LONG.values()], 8192).truncated[0]
        chat = " ".join(["😀🚀 ok 👍🏽 nice", "한국어 हिन्दी ไทย", "ok\r\n\tx = 1"]) * 100_000
        assert case.ours.encode([chat], 8192).truncated[0]


def test_a_tokenizer_without_places_is_only_charged_for_the_whole_call() -> None:
    backend = by_hand()
    backend.pre_tokenizer = SPLIT
    allowance = Allowance(TextCutter(backend), 10, 1_000)
    allowance.spend(0, "a" * 900)
    with pytest.raises(TextSizeError, match="at most 1000"):
        allowance.spend(1, "a" * 200)
