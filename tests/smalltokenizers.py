"""Small tokenizers of every pipeline made on the spot, and what compares ours with the original."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, processors, trainers

from m3fast.text.tokenizer import Tokenizer
from m3fast.types import TokenIds

SHARED = Path(__file__).parents[2] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="no shared/data beside the checkout")

SENTENCES = [
    "the quick brown fox jumps over the lazy dog and the quick dog sleeps, mostly.",
    "searching is finding: what others wrote, what others read, and what they meant.",
    "机器学习与深度学习有什么差别呢学习机器学习的人很多深度学习的人也很多",
    "今天天气很好我们去公园散步然后去公园旁边的图书馆看书今天很好",
    "ภาษาไทยไม่มีช่องว่างระหว่างคำและภาษาไทยมีวรรณยุกต์คำไทยไม่มีช่องว่าง",
    "日本語のテキストをトークン化する日本語のモデルを学習する",
    "быстрая лиса прыгает через ленивую собаку и быстрая собака спит",
    "한국어 문장을 토큰화합니다 한국어 모델을 학습합니다",
    "हिन्दी पाठ परीक्षण के लिए हिन्दी पाठ है",
    "abababab aaaa acgtacgt 0123456789 https://example.com/a?b=c",
]
SPECIALS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
ODD = [
    *("\u0301", "\u200d", "\u3000", "\u00a0", "  ", "\n", "\r\n", "\t", "\u2581", "😀", "\u0e33"),
    *("👨\u200d👩\u200d👧", "\u0600", "ﬁ", "ﾊﾟ", "\u1100\u1161", "\0", "\ufeff", "\u200b", "\u0345"),
    *(
        "\u093f",
        "\u094d",
        "=",
        "a",
        "字",
        "ก",
        "'s",
        "\x85",
        "İ",
        "𠀀",
        "<",
        ">",
        "mask",
        "क",
        "中 ",
    ),
    *("字典", "zebra", "not one", ".", ",", "。", "q"),
]


def _unigram_pieces() -> list[tuple[str, float]]:
    """Specials, then every substring of up to 6 characters seen twice, and most characters."""
    counts: Counter[str] = Counter()
    for sentence in SENTENCES:
        for word in sentence.split():
            marked = "\u2581" + word
            for n in range(1, 7):
                counts.update(marked[i : i + n] for i in range(len(marked) - n + 1))
    total = sum(counts.values())
    pieces = {p: c for p, c in counts.items() if c > 1 or (len(p) == 1 and p not in "qzü书")}
    scored = [(p, math.log(c / total)) for p, c in sorted(pieces.items())]
    return [(s, 0.0) for s in SPECIALS[:4]] + scored


def metaspace() -> pre_tokenizers.Metaspace:
    return pre_tokenizers.Metaspace("\u2581", "always", True)


def frame(backend: tokenizers.Tokenizer, begin: str, end: str) -> None:
    ids = [(t, backend.token_to_id(t)) for t in (begin, end)]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}", pair=f"{begin} $A {end} $B {end}", special_tokens=ids
    )


def unigram(resaved: bool = False, added: bool = False) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.Unigram(_unigram_pieces(), 3, byte_fallback=False))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace()])
    if resaved:
        spaces = normalizers.Replace(tokenizers.Regex(" {2,}"), "\u2581")
        backend.normalizer = normalizers.Sequence([normalizers.NFKC(), spaces])
        backend.pre_tokenizer = metaspace()
    backend.add_special_tokens(SPECIALS[:4])
    backend.add_special_tokens([AddedToken("<mask>", lstrip=True, normalized=False)])
    if added:
        backend.add_tokens([AddedToken("字典", normalized=True), AddedToken("学习机", rstrip=True)])
        backend.add_tokens([AddedToken("dog", single_word=True), AddedToken("ไทย", lstrip=True)])
    frame(backend, "<s>", "</s>")
    return backend


def _spaced_token() -> tokenizers.Tokenizer:
    backend = unigram()
    backend.add_tokens([AddedToken("not one", normalized=False)])
    return backend


def _bert() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    backend.train_from_iterator(SENTENCES, trainer)
    frame(backend, "[CLS]", "[SEP]")
    return backend


def _byte_level() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(SENTENCES, trainer)
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return backend


SMALL = {
    "unigram": unigram,
    "resaved": lambda: unigram(resaved=True),
    "added": lambda: unigram(added=True),
    "added-resaved": lambda: unigram(resaved=True, added=True),
    "spaced-token": _spaced_token,
    "bert": _bert,
    "byte-level": _byte_level,
}
LARGE = ["m3", "m3-resaved", "granite"]


def only(*names: str) -> pytest.MarkDecorator:
    """Run a test with these tokenizers as its `case`."""
    return pytest.mark.parametrize("case", names, indirect=True)


every = only(*SMALL, *LARGE)


def write(name: str, folder: Path) -> Path:
    """Write the tokenizer files of SMALL or LARGE into an empty folder."""
    file = folder / "tokenizer.json"
    if name in SMALL:
        SMALL[name]().save(str(file))
        return folder
    if not SHARED.is_dir():
        pytest.skip("no shared/data beside the checkout")
    genuine = SHARED / "tokenizer" / "tokenizer.json"
    if name == "m3":
        file.symlink_to(genuine)
        for other in ("tokenizer_config.json", "special_tokens_map.json", "config.json"):
            (folder / other).symlink_to(SHARED / "bge-m3-config" / other)
    elif name == "m3-resaved":
        # What transformers 4.57 writes when it has converted the sentencepiece model itself.
        resaved = json.loads(genuine.read_text())
        strip = {"type": "Strip", "strip_left": False, "strip_right": True}
        spaces = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "\u2581"}
        stages = [resaved["normalizer"], strip, spaces]
        resaved["normalizer"] = {"type": "Sequence", "normalizers": stages}
        resaved["pre_tokenizer"] = resaved["pre_tokenizer"]["pretokenizers"][1]
        file.write_text(json.dumps(resaved))
    else:
        file.symlink_to(SHARED / "weights" / "granite-embedding-30m-english" / "tokenizer.json")
    return folder


def rows(tokens: TokenIds) -> list[list[int]]:
    pairs = zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)
    return [tokens.ids[a:b].tolist() for a, b in pairs]


class Case:
    """A tokenizer of ours beside an untouched one that truncates by itself."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ours = Tokenizer.from_dir(path)
        self.plain = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))

    def check(self, texts: list[str], max_length: int) -> None:
        self.plain.no_truncation()
        lengths = [len(e.ids) for e in self.plain.encode_batch(texts)]
        self.plain.enable_truncation(max_length)
        wanted = [e.ids for e in self.plain.encode_batch(texts)]
        found = self.ours.encode(texts, max_length)
        # Not one comparison of all rows: pytest takes minutes to describe how they differ.
        for text, got, want in zip(texts, rows(found), wanted, strict=True):
            same = got == want
            assert same, (text[:2_000], max_length, got[-5:], want[-5:])
        assert found.truncated.tolist() == [n > max_length for n in lengths]


class Spy:
    """Counts the characters that reach the tokenizer, and what they are when normalised."""

    def __init__(self, case: Case) -> None:
        self.inner, self.tokenizer = case.ours._backend, case.ours
        self.chars = self.normalised = 0

    def __enter__(self) -> Spy:
        self.tokenizer._backend = self  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        self.tokenizer._backend = self.inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def encode_batch_fast(self, texts: list[str], **options: Any) -> Any:
        self.chars += sum(map(len, texts))
        normalizer = self.inner.normalizer
        if normalizer is not None:
            self.normalised += sum(len(normalizer.normalize_str(text)) for text in texts)
        return self.inner.encode_batch_fast(texts, **options)


def paragraphs(language: str) -> list[str]:
    """XQuAD's passages in one language."""
    data = json.loads((SHARED / "xquad" / f"xquad.{language}.json").read_text())["data"]
    return [p["context"] for d in data for p in d["paragraphs"]]
