"""Cutting long texts: the same ids as without, at a cost that max_length bounds."""

from __future__ import annotations

import gzip
import json
import random
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from smalltokenizers import (
    ODD,
    SENTENCES,
    SHARED,
    SPECIALS,
    Case,
    Spy,
    every,
    frame,
    metaspace,
    needs_shared,
    only,
    paragraphs,
    rows,
    unigram,
    write,
)
from tokenizers import models, normalizers, pre_tokenizers

from m3fast.errors import TextSizeError
from m3fast.text import cuts
from m3fast.text.cuts import (
    _ENDS,
    _JOINT,
    _SAFE,
    _WIDE_JOINT,
    Allowance,
    TextCutter,
    common_start,
    size_bound,
)
from m3fast.text.tokenizer import at_most


@pytest.fixture(autouse=True, scope="module")
def _search_short_texts_too() -> Iterator[None]:
    """Or none of these texts were long enough to be worth every search."""
    before, cuts._WORTH = cuts._WORTH, 0
    yield
    cuts._WORTH = before


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(write(request.param, tmp_path_factory.mktemp(request.param)))


words = [w for s in SENTENCES for w in s.split()]
unbroken = [s.replace(" ", "") for s in SENTENCES]
# What the normalisers write out, up to eighteen characters of one, some with spaces.
EXPANDING = [
    *(
        "\ufdfa",
        "\ufdfb",
        "\u33c2",
        "\u3316",
        "\ufdf2",
        "\ufb03",
        "\u00bd",
        "\u2474",
        "\u2460\u2473",
    ),
    *(
        "\uff76\uff9e",
        "\uff71",
        "\uff21\uff42",
        "\u2167",
        "\u3231",
        "\u3260",
        "\u2026",
        "\u2057",
        "\u01c6",
    ),
    *("\uff1c\uff53\uff1e", "\uff1cmask\uff1e", "\uff44\uff4f\uff47", "\u00a8", "\ufc5e", "\ufe70"),
    *(
        "\u3131\u314f",
        "\u2581",
        "\U0001d400",
        "\U0002f800",
        "\U0001f600",
        "👍🏽",
        "❤\ufe0f",
        "\u00ad",
    ),
]
fragments = st.one_of(
    st.sampled_from(EXPANDING),
    st.sampled_from(words).map(lambda w: w + " "),
    st.sampled_from(unbroken),
    st.sampled_from(ODD + SPECIALS + ["[MASK]", "[CLS]"]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
)
long_texts = st.builds(
    lambda parts, times: "".join(parts) * times,
    st.lists(fragments, max_size=40),
    st.integers(1, 12),
)


@every
@given(data=st.data())
@settings(max_examples=25)
def test_ids_equal_full_tokenisation(case: Case, data: st.DataObject) -> None:
    texts = data.draw(st.lists(long_texts, min_size=1, max_size=3))
    case.check(texts, data.draw(st.sampled_from([3, 4, 9, 20, 50])))


@every
def test_ids_equal_at_every_cut(case: Case) -> None:
    """Seeded texts of one script, or with odd characters strewn in, at lengths that need a cut."""
    draw = random.Random(5)
    for _ in range(15):
        texts = []
        for _ in range(8):
            text = "".join(draw.choices(draw.choice([unbroken[2:6], unbroken, words]), k=12))
            letters = list(text * 3)
            for _ in range(draw.choice([0, 0, 5, 40])):
                letters[draw.randrange(len(letters))] = draw.choice(ODD + SPECIALS + [" ", " "])
            texts.append("".join(letters)[draw.randrange(40) :])
        case.check(texts, draw.choice([3, 5, 8, 13, 21, 34]))


@every
def test_every_end_is_safe(case: Case) -> None:
    """Whatever the size asked for, the ids of the prefixes begin those of the text."""
    draw = random.Random(6)
    backend, cutter = case.ours._backend, case.ours._cutter
    extra = [*SPECIALS, "zebra", "not one", "dogs"]
    pools = [unbroken[2:6], unbroken, words, list("ab"), list("acgt"), ["the ", "dog ", "字 "]]
    cuts = 0
    for _ in range(50):
        letters = list("".join(draw.choices(draw.choice(pools), k=40)) * draw.choice([1, 1, 4]))
        for _ in range(draw.choice([0, 2, 10, 80])):
            spot = draw.randrange(len(letters) + 1)
            letters[spot:spot] = draw.choices(ODD + extra, k=draw.choice([1, 1, 2, 3]))
        text = "".join(letters)
        ids = backend.encode(text, add_special_tokens=False).ids
        for size in draw.sample(range(20, 400), 12):
            starts = cutter.starts(text, size, True)
            if starts != [text]:
                prefixes = backend.encode_batch(starts, add_special_tokens=False)
                shared = common_start([e.ids for e in prefixes])
                safe = ids[: len(shared)] == shared
                assert safe, (text, starts[-1])
                cuts += 1
    assert cuts > 100 or "spaced" in case.path.name


@every
def test_every_end_in_what_is_written_out_is_safe(case: Case) -> None:
    """Texts of two or three characters that become many, a few others strewn in."""
    draw = random.Random(8)
    backend, cutter = case.ours._backend, case.ours._cutter
    written = 0
    for _ in range(60):
        pool = draw.sample(EXPANDING, draw.choice([1, 2, 3])) + draw.choice([[], ["ab "], [" "]])
        letters = draw.choices(pool, k=draw.choice([60, 300]))
        for _ in range(draw.choice([0, 0, 1, 9])):
            letters[draw.randrange(len(letters))] = draw.choice(ODD + SPECIALS)
        text = "".join(letters)
        ids = backend.encode(text, add_special_tokens=False).ids
        for size in draw.sample(range(20, 400), 6):
            # Asked for directly: most of these texts have other places, which come first.
            out = cutter._nodes_hold and cutter._written_out(text, size, True)
            for starts in (cutter.starts(text, size, True), out or [text]):
                prefixes = backend.encode_batch(starts, add_special_tokens=False)
                shared = common_start([e.ids for e in prefixes])
                safe = ids[: len(shared)] == shared
                assert safe, (text, starts[-1])
            written += bool(out)
        case.check([text], draw.choice([3, 8, 21]))
    assert written > 20 or not cutter._nodes_hold


LONG = {
    "words": " ".join(words),
    "chinese": unbroken[2] + unbroken[3],
    "thai": unbroken[4],
    "lines": "\n".join(words),
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
def test_what_cannot_be_proven_safe_is_tokenised_whole(case: Case) -> None:
    text = "the fox is not one " * 1_000
    with Spy(case) as spy:
        case.check([text], 64)
    assert spy.chars == len(text)


SPACES = pre_tokenizers.WhitespaceSplit()
SPLIT = pre_tokenizers.Split("q", "isolated")
BERT = normalizers.BertNormalizer()


def _state(component: Any) -> dict[str, Any]:
    return json.loads(component.__getstate__())


@pytest.mark.parametrize(
    ("key", "stage"),
    [
        ("pre_tokenizer", _state(SPLIT)),
        ("pre_tokenizer", _state(pre_tokenizers.Metaspace(split=False))),
        ("pre_tokenizer", _state(pre_tokenizers.ByteLevel(use_regex=False))),
        ("pre_tokenizer", _state(pre_tokenizers.Sequence([SPACES, SPLIT]))),
        ("pre_tokenizer", None),
        ("normalizer", _state(normalizers.Sequence([BERT, normalizers.NFC()]))),
        ("normalizer", {"type": "Prepend", "prepend": "\u2581"}),
        ("normalizer", {"type": "Replace", "pattern": {"String": "x the"}, "content": "the"}),
    ],
)  # fmt: skip
def test_unknown_stages_fall_back(tmp_path: Path, key: str, stage: dict[str, Any] | None) -> None:
    settings = json.loads(unigram().to_str()) | {key: stage}
    (tmp_path / "tokenizer.json").write_text(json.dumps(settings))
    case = Case(tmp_path)
    with Spy(case) as spy:
        case.check(["fox the dog " * 500], 32)
    assert spy.chars == 6_000


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
    letters = re.findall(f"[{_SAFE}]", "".join(map(chr, range(0x110000))))
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
    letters = re.findall(f"[{_SAFE}]", everything)
    ends = sorted({*re.findall(f"[{_ENDS}]", everything)} - {*letters})
    draw, pool = random.Random(3), letters + ends
    for end in ends * 60:
        left, right = "".join(draw.choices(pool, k=3)), draw.choice(letters)
        right += "".join(draw.choices(pool, k=3))
        for a, b in ((left + end, right), (left, " " + right), (left, "\n" + right)):
            assert normal(a + b) == normal(a) + normal(b), (a, b)


def test_wide_joints_are_for_normalisers_that_keep_spaces() -> None:
    assert TextCutter(unigram())._joint is _WIDE_JOINT
    assert TextCutter(unigram(resaved=True))._joint is _JOINT  # it merges spaces


def test_a_search_can_be_given_up() -> None:
    text = "a" * 300 + " the fox" * 20
    assert TextCutter(_by_hand("aa")).starts(text, 20, False) != [text]
    assert TextCutter(_by_hand("aa")).starts(text, 20, False, most=100) == [text]


def test_safe_letters_meet_as_unicode_has_it() -> None:
    """No normal form of one begins with what composes with, or moves before, the one ahead."""
    seconds = {*map(chr, range(0x1161, 0x1176)), *map(chr, range(0x11A8, 0x11C3))}
    for c in map(chr, range(0x110000)):
        parts = unicodedata.decomposition(c).split()
        if len(parts) == 2 and "<" not in parts[0]:
            seconds.add(chr(int(parts[1], 16)))
    for c in re.findall(f"[{_SAFE}]", "".join(map(chr, range(0x110000)))):
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


# One word whose first tokens hang on its last, or hardly a token at all.
UNCUT = {"a": "a", "spaces": " ", "newlines": "\n", "marks": "\u0301", "dropped": "\u200b"}
UNCUT |= {"unknown": "\U0010fffd", "tags": "<s>", "jamo": "\u1100"}


@pytest.mark.parametrize("text", UNCUT.values(), ids=UNCUT)
@only("resaved", "m3", "m3-resaved")
def test_what_cannot_be_cut_is_refused_before_it_is_tokenised(case: Case, text: str) -> None:
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
    """In normalised characters of what is tokenised, each text's once."""
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
    prose = " ".join(words) * 20_000
    with at_most(1 << 19, 10 << 20):
        assert case.ours.encode([prose, *LONG.values()], 8192).truncated[0]
        chat = " ".join(["😀🚀 ok 👍🏽 nice", "한국어 हिन्दी ไทย", "ok\r\n\tx = 1"]) * 100_000
        assert case.ours.encode([chat], 8192).truncated[0]


def test_a_tokenizer_without_places_is_only_charged_for_the_whole_call() -> None:
    backend = _by_hand()
    backend.pre_tokenizer = SPLIT
    allowance = Allowance(TextCutter(backend), 10, 1_000)
    allowance.spend(0, "a" * 900)
    with pytest.raises(TextSizeError, match="at most 1000"):
        allowance.spend(1, "a" * 200)


def _by_hand(
    *pieces: str, normalizer: Any = None, byte_fallback: bool = False
) -> tokenizers.Tokenizer:
    vocab = [(p, -1.0) for p in ("<unk>", "\u2581", *"abcdxyz", *pieces)]
    backend = tokenizers.Tokenizer(models.Unigram(vocab, 0, byte_fallback))
    backend.pre_tokenizer = metaspace()
    if normalizer is not None:
        backend.normalizer = normalizer
    return backend


def test_a_node_has_no_piece_across() -> None:
    text = "xyz abcd xyz" * 20
    place = text.index("bcd", 100)  # between a and b

    def is_node(*pieces: str, **options: Any) -> bool:
        return TextCutter(_by_hand(*pieces, **options))._is_node(text, place)

    assert is_node("bcd", "xyz", "\u2581a", "xyza")
    assert not is_node("ab")
    assert not is_node("\u2581ab")
    assert not is_node("\u2581abcd")  # the longest, its last characters behind the place
    before = TextCutter(_by_hand("xyzab"))  # the longest, its first characters before the place
    assert not before._is_node("c" * 90 + "xyzab" + "c" * 90, 94)
    assert before._is_node("c" * 90 + "cyzab" + "c" * 90, 94)


def test_a_node_is_not_inside_an_added_token() -> None:
    for token in ("AB", "ab"):
        backend = _by_hand(normalizer=normalizers.Lowercase())
        backend.add_tokens([tokenizers.AddedToken(token, normalized=True)])
        cutter = TextCutter(backend)
        assert not cutter._is_node("x" * 90 + "ab" + "x" * 90, 91)
        assert cutter._is_node("x" * 90 + "ba" + "x" * 90, 91)


def test_a_node_needs_enough_characters_around_it() -> None:
    """The normaliser takes the control characters away, so z and y end up beside a."""
    cutter = TextCutter(_by_hand("zyab", normalizer=normalizers.Nmt()))
    gap = "\x01" * 30
    assert not cutter._is_node("zy" + gap + "ab" + "c" * 90, 33)
    assert not cutter._is_node("c" * 90 + "za" + gap + "yc", 91)


def test_a_window_is_as_long_as_the_longest_piece() -> None:
    text = "ab" * 200

    def lengths(backend: tokenizers.Tokenizer, text: str, size: int, windows: bool) -> list[int]:
        starts = TextCutter(backend).starts(text, size, windows)
        assert all(text.lower().startswith(start) for start in starts)
        return [len(start) for start in starts]

    backend = _by_hand("ab", "ba", "ababa")
    found = lengths(backend, text, 60, True)
    assert len(found) == 5 and found == [*range(found[0], found[0] + 5)]
    assert 40 < found[0] < 64
    assert lengths(backend, text, 60, False) == [400]
    assert lengths(backend, text, 100, True) == [400]  # five prefixes of 100 cost more
    marked = ("a\u0301" + "ab\u0301") * 100  # every window meets a mark, which is not safe
    assert lengths(backend, marked, 60, True) == [500]
    lower = _by_hand("ab", "ba", "ababa", normalizer=normalizers.Lowercase())
    assert lengths(lower, text.upper().lower(), 60, True) == found
    backend.add_tokens(["xab"])
    assert lengths(backend, "xab" * 200, 60, True) == [600]
    fallback = _by_hand("ab", "ba", *(f"<0x{i:02X}>" for i in range(256)), byte_fallback=True)
    assert lengths(fallback, text, 60, True) == [400]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("abab cd", 4), ("abab  cd", None), ("abab \u0301cd", None), ("ab\u093e cd", 3),
        ("\u0600b cd", None), ("ab\ncd", None), ("abab,cd", None), ("abab", None), ("字字", None),
    ],
)  # fmt: skip
def test_split_points(text: str, place: int | None) -> None:
    assert TextCutter(_by_hand())._last_split(text, len(text)) == place


@pytest.mark.parametrize(
    ("pre_tokenizer", "place"),
    [(SPACES, 4), (pre_tokenizers.BertPreTokenizer(), 4), (metaspace(), None)],
)
def test_newlines_split_where_the_pipeline_says_so(pre_tokenizer: Any, place: int | None) -> None:
    backend = _by_hand("b\nc")
    backend.pre_tokenizer = pre_tokenizer
    assert TextCutter(backend)._last_split("abab\ncd", 7) == place


@pytest.mark.parametrize(("text", "place"), [("abab, cd", 4), ("字字。字", 2)])
@only("bert", "byte-level")
def test_stops_split_where_the_pipeline_says_so(case: Case, text: str, place: int) -> None:
    assert case.ours._cutter._last_split(text, 4) == place


def test_a_count_of_exactly_the_limit_is_not_taken_for_the_whole(tmp_path: Path) -> None:
    backend = _by_hand()
    backend.save(str(tmp_path / "tokenizer.json"))
    case = Case(tmp_path)
    for n in range(3, 60):
        case.check(["abcd " * 100, "abcdxyz" * 40 + " a" * 300], n)


def test_cutter_gives_starts_inside_the_text() -> None:
    cutter = TextCutter(unigram())
    assert cutter.starts("short", 64, True) == ["short"]
    assert cutter.starts("", 64, True) == [""]
    text = LONG["words"] * 20
    [start] = cutter.starts(text, 200, True)
    assert 100 <= len(start) <= 200 and text.startswith(start + " ")


@needs_shared
@only("m3", "m3-resaved", "granite")
def test_real_text(case: Case) -> None:
    """Paragraphs, the same joined without spaces, handbook sections."""
    languages = ("en", "zh", "th", "ar", "hi", "ru")
    passages = {name: paragraphs(name) for name in languages}
    texts = [p for some in passages.values() for p in some[::16]]
    case.check(texts, 64)
    joined = ["".join(some[:20]) for some in passages.values()]
    solid = ["".join(text.split()) for text in joined]
    for max_length in (17, 512):
        case.check(joined + solid, max_length)
    with gzip.open(
        SHARED / "handbook-sections" / "debian-handbook-sections.14-locales.json.gz"
    ) as f:
        handbook = json.load(f)
    sections = [s for s in _strings(handbook) if len(s) > 3_000][::80]
    assert len(sections) > 5
    case.check(sections, 256)


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [s for v in inner for s in _strings(v)]
