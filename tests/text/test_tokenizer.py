"""Token ids against `tokenizers` with its own truncation, which transformers calls, and itself.

The small tokenizers are made here; those of ../shared/data take part where that folder exists.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from smalltokenizers import (
    ODD,
    SENTENCES,
    SHARED,
    SMALL,
    SPECIALS,
    Case,
    Spy,
    needs_shared,
    only,
    paragraphs,
    rows,
    unigram,
    write,
)
from tokenizers import processors

from m3fast.errors import CheckpointError, InputError
from m3fast.text.tokenizer import Tokenizer

most = only(*SMALL, "m3", "granite")


@most
def test_empty_and_blank_texts(case: Case) -> None:
    case.check(["", " ", "   ", "\n", "\t \n", "a", "\0"], 8)
    nothing = case.ours.encode([], 8)
    assert (nothing.ids.dtype, nothing.offsets.tolist(), len(nothing)) == (np.int32, [0], 0)


@only("unigram", "bert", "byte-level")
def test_types_and_more_texts_than_a_batch(case: Case) -> None:
    texts = [f"{word} {i}" for i in range(300) for word in SENTENCES[0].split()[:8]]
    case.check(texts, 5)
    found = case.ours.encode(texts, 5)
    assert (found.ids.dtype, found.offsets.dtype) == (np.int32, np.int64)
    assert found.truncated.dtype == np.bool_


def test_a_saved_truncation_and_padding_are_not_used(tmp_path: Path) -> None:
    backend = unigram()
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    backend.save(str(tmp_path / "tokenizer.json"))
    found = Tokenizer.from_dir(tmp_path).encode(["the " * 20, "the"], 50)
    assert rows(found) == [unigram().encode(text).ids for text in ("the " * 20, "the")]


# --- threads --------------------------------------------------------------------------------


@only("unigram", "byte-level", "m3")
def test_eight_threads_at_once(case: Case) -> None:
    texts = [s * n for s in SENTENCES for n in (1, 5, 40)]
    lengths = [8, 64, 512] * 16
    alone = {n: rows(case.ours.encode(texts, n)) for n in set(lengths)}
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: rows(case.ours.encode(texts, n)), lengths))
    assert found == [alone[n] for n in lengths]


# --- token ids as input, bad input ----------------------------------------------------------


@only("unigram")
def test_token_ids_are_used_as_they_are(case: Case) -> None:
    given = [[0, 7, 8, 2], (0, 9, 2), np.array([5, 6], np.int64), "the", [0, *range(10, 30), 2]]
    found = case.ours.encode(given, 8)
    plain = case.plain
    plain.no_truncation()
    assert rows(found) == [
        [0, 7, 8, 2], [0, 9, 2], [5, 6], plain.encode("the").ids, [0, 10, 11, 12, 13, 14, 15, 2],
    ]  # fmt: skip
    assert found.truncated.tolist() == [False, False, False, False, True]
    last = len(case.ours) - 1
    exact = case.ours.encode([[last], [0, 5, 6, 7, 8, 9, 10, 2]], 8)
    assert rows(exact) == [[last], [0, 5, 6, 7, 8, 9, 10, 2]]
    assert not exact.truncated.any()
    with pytest.raises(InputError, match=rf"^texts\[0\]: .* to {last}, found {last + 1}$"):
        case.ours.encode([[last + 1]], 8)


@pytest.mark.parametrize(
    "bad",
    [
        None, b"text", bytearray(b"t"), 3, 2.5, True, {"a": 1}, {1}, object(), iter([1]),
        [], (), [[1, 2]], [[1], [2, 3]], ["a"], [1.0, 2.0], [None], [True, False], [-1], [10**6],
        [2**70], np.array(["a"]), np.array([[1, 2]]), np.array(3), np.array([1.5]),
        np.array([]), np.array([], int),
        "lone \ud800 surrogate", "\udfff", "x" * 9_000 + "\ud800",
    ],
    ids=lambda bad: f"{type(bad).__name__}",
)  # fmt: skip
@only("unigram")
def test_bad_texts_are_named(case: Case, bad: Any) -> None:
    with pytest.raises(InputError, match=r"^texts\[1\]: expected .*, found ") as caught:
        case.ours.encode(["fine", bad], 16)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [2, 0, -1, True, 8.0, "8", None])
@only("unigram", "bert")
def test_bad_max_length_is_named(case: Case, bad: Any) -> None:
    with pytest.raises(InputError, match=r"^max_length: expected"):
        case.ours.encode(["text"], bad)


def test_max_length_has_a_floor_without_special_tokens(tmp_path: Path) -> None:
    backend = unigram()
    backend.post_processor = None  # type: ignore[assignment]
    backend.save(str(tmp_path / "tokenizer.json"))
    case = Case(tmp_path)
    case.check([*SENTENCES, ""], 3)
    with pytest.raises(InputError, match="max_length: expected at least 3, found 2"):
        case.ours.encode(["text"], 2)


def test_max_length_leaves_room_for_one_token(tmp_path: Path) -> None:
    backend = unigram()
    ids = [("<s>", 0), ("</s>", 2)]
    backend.post_processor = processors.TemplateProcessing(
        single="<s> <s> $A </s>", special_tokens=ids
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    case = Case(tmp_path)
    case.check(SENTENCES, 4)
    with pytest.raises(InputError, match="max_length: expected at least 4, found 3"):
        case.ours.encode(["text"], 3)


# --- special tokens, pieces, files ----------------------------------------------------------


@most
def test_special_ids(case: Case) -> None:
    ours, plain = case.ours, case.plain
    names = ["[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"]
    if "bert" not in case.path.name:
        names = ["<s>", "</s>", "<pad>", "<unk>", "<mask>"]
    ids = [plain.token_to_id(n) for n in names]
    assert [ours.cls_id, ours.eos_id, ours.pad_id, ours.unk_id, ours.mask_id] == ids
    dropped = {ids[0], *ids[2:4]} if names[0] == "[CLS]" else set(ids[:4])
    assert ours.dropped_ids == dropped
    assert len(ours) == plain.get_vocab_size()
    assert ours.vocab_size == plain.get_vocab_size(with_added_tokens=False)
    assert ours.token_to_id(names[1]) == ids[1]
    assert ours.token_to_id("no such piece") is None
    assert ours.convert_ids_to_tokens(ids[0]) == names[0]
    assert ours.convert_ids_to_tokens(np.array(ids)) == names
    assert ours.convert_ids_to_tokens([10**6]) == [None]


def test_special_tokens_by_file(tmp_path: Path) -> None:
    backend = unigram()
    backend.add_special_tokens(["<start>", "<blank>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "special_tokens_map.json").write_text('{"pad_token": "<s>", "cls_token": "<unk>"}')
    config = '{"cls_token": {"content": "<start>"}, "pad_token": "<blank>"}'
    (tmp_path / "tokenizer_config.json").write_text(config)
    ours = Tokenizer.from_dir(tmp_path)
    assert ours.cls_id == backend.token_to_id("<start>")
    assert ours.pad_id == backend.token_to_id("<blank>")
    assert ours.dropped_ids == {ours.cls_id, ours.pad_id, 2, 3}


def test_folder_without_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        Tokenizer.from_dir(tmp_path)
    for name in (str(tmp_path), "tokenizer.json", "sentencepiece.bpe.model", "vocab.txt"):
        assert name in str(caught.value)


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
)
@pytest.mark.parametrize("content", ["{", "[1]", '{"version": "1.0"', "\xff"])
def test_corrupt_file_is_named(tmp_path: Path, name: str, content: str) -> None:
    unigram().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        Tokenizer.from_dir(tmp_path)


@pytest.mark.parametrize("int8", [False, True])
def test_vocab_txt_through_transformers(tmp_path: Path, int8: bool) -> None:
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "fox", "##es", "run"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocab))
    config = {"model_type": "bert"}
    if int8:
        config = {"model_type": "m3fast-int8", "m3fast_model_type": "bert"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours = Tokenizer.from_dir(tmp_path)
    assert rows(ours.encode(["The foxes run", "run run run run"], 5)) == [
        [2, 5, 6, 7, 3],
        [2, 8, 8, 8, 3],
    ]
    assert (ours.eos_id, ours.dropped_ids) == (3, {0, 1, 2})


def test_unreadable_sentencepiece_model(tmp_path: Path) -> None:
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"not a model")
    (tmp_path / "config.json").write_text('{"model_type": "xlm-roberta"}')
    with pytest.raises(CheckpointError, match=r"sentencepiece\.bpe\.model"):
        Tokenizer.from_dir(tmp_path)


def test_same_as_transformers(tmp_path: Path) -> None:
    """A small tokenizer through AutoTokenizer: ids, special tokens, decoding with clean-up."""
    from transformers import AutoTokenizer

    config = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token"), SPECIALS, strict=False))
    config |= {"cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    write("unigram", tmp_path)
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), Tokenizer.from_dir(tmp_path)
    _compare(ours, theirs, SENTENCES + [s * 30 for s in SENTENCES], 40)


def _compare(ours: Tokenizer, theirs: Any, texts: list[str], max_length: int) -> None:
    wanted = theirs(texts, truncation=True, max_length=max_length)["input_ids"]
    assert rows(ours.encode(texts, max_length)) == wanted
    assert (len(ours), ours.vocab_size) == (len(theirs), theirs.vocab_size)
    for ids in wanted[:40]:
        assert ours.decode(ids) == theirs.decode(ids)
        assert ours.convert_ids_to_tokens(ids) == theirs.convert_ids_to_tokens(ids)
        assert [ours.decode(i) for i in ids[:20]] == [theirs.decode([i]) for i in ids[:20]]
    # The reference's rule for the ids that lexical weights leave out.
    present = theirs.special_tokens_map
    roles = [r for r in ("cls_token", "eos_token", "pad_token", "unk_token") if r in present]
    assert ours.dropped_ids == {theirs.convert_tokens_to_ids(present[r]) for r in roles}


# --- the genuine tokenizer, real text -------------------------------------------------------


@needs_shared
@only("m3")
def test_reference_cases(case: Case) -> None:
    cases = json.loads((SHARED / "tokenizer" / "bge_m3_reference_cases.json").read_text())
    assert rows(case.ours.encode([text for text, _ in cases], 512)) == [ids for _, ids in cases]


@needs_shared
@only("m3")
def test_real_tokenizer_against_transformers(case: Case) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(case.path)
    novel = (SHARED / "long-documents" / "pride-and-prejudice_pg1342.txt").read_text()[:120_000]
    specials = "a <mask> b<mask>c <pad></s> <s>d"
    _compare(
        case.ours, theirs, [*paragraphs("zh")[:40], *paragraphs("de")[:20], *ODD, specials], 99
    )
    [ids] = theirs([novel], truncation=True, max_length=8192)["input_ids"]
    assert rows(case.ours.encode([novel], 8192)) == [ids]
    assert rows(case.ours.encode([novel], 512)) == [[*ids[:511], 2]]
    with Spy(case) as spy:
        case.ours.encode([novel], 512)
    assert spy.chars < 3_000


@needs_shared
def test_sentencepiece_model_through_transformers(tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    for name in ("tokenizer_config.json", "special_tokens_map.json", "config.json"):
        (tmp_path / name).write_text((SHARED / "bge-m3-config" / name).read_text())
    model = SHARED / "tokenizer" / "sentencepiece.bpe.model"
    (tmp_path / "sentencepiece.bpe.model").symlink_to(model)
    ours = Tokenizer.from_dir(tmp_path)
    assert rows(ours.encode(["Hello world!"], 16)) == [[0, 35378, 8999, 38, 2]]
    assert ours.dropped_ids == {0, 1, 2, 3}
