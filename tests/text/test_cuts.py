"""Cutting long texts: the same ids as without."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from smalltokenizers import (
    ODD,
    SHARED,
    SPECIALS,
    SPLIT,
    UNBROKEN,
    WORDS,
    Case,
    Spy,
    by_hand,
    every,
    needs_shared,
    only,
    paragraphs,
    unigram,
)
from tokenizers import normalizers, pre_tokenizers

from m3fast.text.cuts import TextCutter, common_start

pytestmark = pytest.mark.usefixtures("search_short_texts_too")

# What the normalisers write out, up to eighteen characters of one, some with spaces.
EXPANDING = [
    *("\ufdfa", "\ufdfb", "\u33c2", "\u3316", "\ufdf2", "\ufb03", "\u00bd", "\u2474"),
    *("\u2460\u2473", "\uff76\uff9e", "\uff71", "\uff21\uff42", "\u2167", "\u3231", "\u3260"),
    *("\u2026", "\u2057", "\u01c6", "\uff1c\uff53\uff1e", "\uff1cmask\uff1e", "\uff44\uff4f\uff47"),
    *("\u00a8", "\ufc5e", "\ufe70", "\u3131\u314f", "\u2581", "\U0001d400", "\U0002f800"),
    *("\U0001f600", "👍🏽", "❤\ufe0f", "\u00ad"),
]
fragments = st.one_of(
    st.sampled_from(EXPANDING),
    st.sampled_from(WORDS).map(lambda w: w + " "),
    st.sampled_from(UNBROKEN),
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
def test_ids_equal_full_tokenization(case: Case, data: st.DataObject) -> None:
    texts = data.draw(st.lists(long_texts, min_size=1, max_size=3))
    case.check(texts, data.draw(st.sampled_from([3, 4, 9, 20, 50])))


@every
def test_ids_equal_at_every_cut(case: Case) -> None:
    """Seeded texts of one script, or with odd characters strewn in, at lengths that need a cut."""
    draw = random.Random(5)
    for _ in range(15):
        texts = []
        for _ in range(8):
            text = "".join(draw.choices(draw.choice([UNBROKEN[2:6], UNBROKEN, WORDS]), k=12))
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
    pools = [UNBROKEN[2:6], UNBROKEN, WORDS, list("ab"), list("acgt"), ["the ", "dog ", "字 "]]
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
            out = cutter._nodes.hold and cutter._nodes.written_out(text, size, True)
            for starts in (cutter.starts(text, size, True), out or [text]):
                prefixes = backend.encode_batch(starts, add_special_tokens=False)
                shared = common_start([e.ids for e in prefixes])
                safe = ids[: len(shared)] == shared
                assert safe, (text, starts[-1])
            written += bool(out)
        case.check([text], draw.choice([3, 8, 21]))
    assert written > 20 or not cutter._nodes.hold


SPACES = pre_tokenizers.WhitespaceSplit()
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


def test_a_count_of_exactly_the_limit_is_not_taken_for_the_whole(tmp_path: Path) -> None:
    backend = by_hand()
    backend.save(str(tmp_path / "tokenizer.json"))
    case = Case(tmp_path)
    for n in range(3, 60):
        case.check(["abcd " * 100, "abcdxyz" * 40 + " a" * 300], n)


def test_cutter_gives_starts_inside_the_text() -> None:
    cutter = TextCutter(unigram())
    assert cutter.starts("short", 64, True) == ["short"]
    assert cutter.starts("", 64, True) == [""]
    text = " ".join(WORDS) * 20
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
