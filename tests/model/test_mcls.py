"""MCLS against a plain computation: CLS ids put in by hand, transformers' encoder, their mean."""

from __future__ import annotations

import asyncio
import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from checkpoints import TEXTS, make_checkpoint
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torch.nn.functional import normalize
from transformers import AutoTokenizer, XLMRobertaModel

from m3fast import AsyncEngine, BGEM3FlagModel, CheckpointError, Engine, InputError
from m3fast.cli import main
from m3fast.cli.corpus import Corpus
from m3fast.cli.encode import _manifest
from m3fast.model.heads import pooled_rows, word_rows
from m3fast.model.mcls import insert_cls, plain_limit
from m3fast.runner import forward
from m3fast.text.tokenizer import Tokenizer
from m3fast.types import TokenIds
from m3fast.verify.plain import engine_vectors, plain_vectors

CLS, PAD, EOS, UNK = range(4)
EVERY = 256  # the paper's
# Tokens before any is put in; 8,161 become 8,192.
LENGTHS = (1, 2, 254, 255, 256, 257, 258, 510, 511, 512, 513, 514, 2000, 8161)
LONG = " ".join(f"word{i} number {i * 37}" for i in range(150))
LITERALS = [
    "<s>" * 600,
    "<pad> " * 300 + LONG,
    " ".join(["a <s> b </s> c <pad> <unk> <mask>"] * 90),
    LONG,
]


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return make_checkpoint(folder, seed=3, hidden=32, heads=2, ffn=48, positions=8194)


@pytest.fixture(scope="module")
def engine(path) -> Engine:
    return Engine.from_pretrained(path, device="cpu", dtype="float32", pooling="mcls")


class Plain(NamedTuple):
    """What one text should give; dense and colbert not yet normalised."""

    n_tokens: int
    dense: torch.Tensor
    sparse: dict[int, float]
    colbert: torch.Tensor


def with_cls(ids: list[int]) -> tuple[list[int], list[int]]:
    """The sequence with its CLS tokens, and where they are."""
    out: list[int] = []
    places: list[int] = []
    for token in ids:
        if len(out) % EVERY == 0:
            places.append(len(out))
            if out:
                out.append(CLS)
        out.append(token)
    return out, places


def cut(ids: list[int], max_length: int) -> list[int]:
    """The longest start of a text, then its last id, that fits with the CLS tokens put in."""
    if len(with_cls(ids)[0]) <= max_length:
        return ids
    kept = (ids[: n - 1] + ids[-1:] for n in range(max_length, 0, -1))
    return next(part for part in kept if len(with_cls(part)[0]) <= max_length)


@pytest.fixture(scope="module")
def plain(path):
    """plain(ids, max_length), by transformers in float32."""
    model = XLMRobertaModel.from_pretrained(path, add_pooling_layer=False, dtype=torch.float32)
    model.eval()
    sparse, colbert = (torch.load(path / f"{n}_linear.pt") for n in ("sparse", "colbert"))

    @cache
    def run(ids: tuple[int, ...]) -> Plain:
        sequence, places = with_cls(list(ids))
        given = torch.tensor([sequence])
        with torch.inference_mode():
            hidden = model(given, attention_mask=torch.ones_like(given)).last_hidden_state[0]
        weights = (hidden @ sparse["weight"].T + sparse["bias"]).relu()[:, 0].tolist()
        row: dict[int, float] = {}
        for token, weight in zip(sequence, weights, strict=True):
            if token not in (CLS, PAD, EOS, UNK) and weight > 0:
                row[token] = max(weight, row.get(token, 0.0))
        words = [i for i in range(len(sequence)) if i not in places]
        vectors = hidden[words] @ colbert["weight"].T + colbert["bias"]
        return Plain(len(sequence), hidden[places].mean(0), row, vectors)

    return lambda ids, max_length=8192: run(tuple(cut(list(ids), max_length)))


@pytest.fixture(scope="module")
def tokenise(path):
    """transformers' ids of a text, uncut."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    return lambda text: tokenizer(text, truncation=False)["input_ids"]


def random_ids(length: int, vocab: int) -> list[int]:
    rng = np.random.default_rng(length)
    ids = rng.integers(4, vocab, length).tolist()
    ids[-1], ids[0] = EOS, CLS
    return ids


@pytest.fixture(scope="module")
def texts(engine) -> list[list[int]]:
    return [random_ids(n, engine.config.vocab_size) for n in LENGTHS]


def check(found, expected: list[Plain], tolerance: float = 2e-5) -> None:
    assert found.n_tokens.tolist() == [text.n_tokens for text in expected]
    dense = normalize(torch.stack([text.dense for text in expected]), dim=-1)
    np.testing.assert_allclose(found.dense, dense, rtol=0, atol=tolerance)
    for row, text in zip(found.sparse.to_dicts(), expected, strict=True):
        # A weight within rounding of zero may be positive on one side only.
        ids = row.keys() | text.sparse.keys()
        weights = {i: text.sparse.get(i, 0.0) for i in ids}
        assert {i: row.get(i, 0.0) for i in ids} == pytest.approx(weights, abs=tolerance)
    for vectors, text in zip(found.colbert, expected, strict=True):
        colbert = normalize(text.colbert, dim=-1)
        np.testing.assert_allclose(vectors, colbert, rtol=0, atol=tolerance)


def test_lengths_in_one_call(engine, texts, plain) -> None:
    found = engine.encode(texts)
    check(found, [plain(ids) for ids in texts])
    assert found.n_tokens.tolist()[-1] == 8192 and not found.truncated.any()


@pytest.mark.parametrize("length", LENGTHS[:-2])
def test_lengths_alone(engine, texts, plain, length) -> None:
    ids = texts[LENGTHS.index(length)]
    check(engine.encode([ids]), [plain(ids)])


def test_short_texts_equal_cls_exactly(path, engine, texts, tokenise) -> None:
    cls = Engine.from_pretrained(path, device="cpu", dtype="float32")
    short = [*texts[:5], *(text for text in TEXTS if len(tokenise(text)) <= EVERY)]
    for outputs in ({}, {"sparse": False, "colbert": False}):
        a, b = (e.encode(short, **outputs) for e in (engine, cls))
        np.testing.assert_array_equal(a.dense, b.dense)
        np.testing.assert_array_equal(a.n_tokens, b.n_tokens)
        if a.colbert is not None:
            np.testing.assert_array_equal(a.colbert.values, b.colbert.values)
            np.testing.assert_array_equal(a.sparse.values, b.sparse.values)
    long = texts[5:6]
    assert abs(engine.encode(long).dense - cls.encode(long).dense).max() > 1e-2


def test_literal_special_tokens_and_no_text(engine, plain, tokenise) -> None:
    """A `<s>` of the text is no CLS that was put in, wherever it stands."""
    texts = [*LITERALS, "", "   ", *TEXTS]
    check(engine.encode(texts), [plain(tokenise(text)) for text in texts])


@pytest.mark.parametrize("max_length", [3, 255, 256, 257, 258, 300, 511, 512, 513, 514, 515])
def test_max_length_counts_every_cls(engine, plain, tokenise, max_length) -> None:
    texts = [*LITERALS, "short", *TEXTS[:2]]
    ids = [tokenise(text) for text in texts]
    for given in (texts, ids):
        found = engine.encode(given, max_length=max_length)
        check(found, [plain(each, max_length) for each in ids])
        assert found.n_tokens.max() <= max_length
        fits = [len(with_cls(each)[0]) <= max_length for each in ids]
        assert found.truncated.tolist() == [not fit for fit in fits]
    tokens = engine.tokenise(texts, max_length)
    assert (tokens.ids[tokens.offsets[1:] - 1] == EOS).all()


def test_beyond_the_models_positions(engine, plain) -> None:
    ids = random_ids(9000, engine.config.vocab_size)
    found = engine.encode([ids])
    check(found, [plain(ids)])
    assert found.n_tokens[0] == 8192 and found.truncated[0]


def test_width_and_norm(engine, texts, plain) -> None:
    found = engine.encode(texts[4:], truncate_dim=20, normalize=False)
    expected = [plain(ids) for ids in texts[4:]]
    dense = torch.stack([text.dense[:20] for text in expected])
    np.testing.assert_allclose(found.dense, dense, rtol=0, atol=5e-5)
    for vectors, text in zip(found.colbert, expected, strict=True):
        np.testing.assert_allclose(vectors, text.colbert[:, :20], rtol=0, atol=5e-5)
    cut = engine.encode(texts[4:], truncate_dim=20)
    np.testing.assert_allclose(cut.dense, normalize(dense, dim=-1), rtol=0, atol=2e-5)


def test_dense_alone_computes_the_rows_of_cls_alone(engine, texts, monkeypatch) -> None:
    encode, rows = forward.encode, []

    def spy(*args):
        rows.append(args[4])
        return encode(*args)

    monkeypatch.setattr(forward, "encode", spy)
    whole = engine.encode(texts[:-1])
    assert all(each is None for each in rows)
    rows.clear()
    alone = engine.encode(texts[:-1], sparse=False, colbert=False)
    np.testing.assert_allclose(alone.dense, whole.dense, rtol=0, atol=2e-6)
    assert sum(len(each) for each in rows) == sum(len(with_cls(ids)[1]) for ids in texts[:-1])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_close(path, texts, plain, dtype) -> None:
    rough = Engine.from_pretrained(path, device="cpu", dtype=dtype, pooling="mcls")
    for outputs in ({}, {"sparse": False, "colbert": False}):
        found = rough.encode(texts[:-1], **outputs)
        dense = normalize(torch.stack([plain(ids).dense for ids in texts[:-1]]), dim=-1).numpy()
        assert (found.dense * dense).sum(1).min() > 0.999


def test_iter(engine, texts, plain, monkeypatch) -> None:
    monkeypatch.setattr("m3fast.engine.engine.WINDOW_TEXTS", 5)
    parts = list(engine.encode_iter(iter(texts[:-1]), max_length=600))
    assert [len(part) for part in parts] == [5, 5, 3]
    for i, part in enumerate(parts):
        check(part, [plain(ids, 600) for ids in texts[:-1][5 * i : 5 * i + 5]])


def test_async_requests_that_share_batches(path, texts, plain) -> None:
    engine = Engine.from_pretrained(path, device="cpu", pooling="mcls", dtype="float32")
    asked = [(texts[i : i + 4], 600, None if i % 3 else 20) for i in range(0, 12)]

    async def main():
        async with AsyncEngine(engine) as serving:
            calls = [serving.encode(t, max_length=m, truncate_dim=d) for t, m, d in asked]
            found = await asyncio.gather(*calls)
            streamed = [part async for part in serving.encode_iter(texts[3:9])]
            with pytest.raises(InputError, match=r"texts\[0\]: expected at most 512 tokens"):
                await serving.encode([texts[LENGTHS.index(512)]], max_length=512, truncate=False)
            return found, streamed, await serving.submit([texts[LENGTHS.index(511)]])

    found, streamed, answer = asyncio.run(main())
    for (given, limit, dim), each in zip(asked, found, strict=True):
        expected = [plain(ids, limit) for ids in given]
        check(each, [text._replace(dense=text.dense[:dim], colbert=text.colbert[:, :dim])
                     for text in expected])  # fmt: skip
    check(streamed[0], [plain(ids) for ids in texts[3:9]])
    check(answer.embeddings, [plain(texts[LENGTHS.index(511)])])


def test_drop_in(path, plain, tokenise) -> None:
    model = BGEM3FlagModel(str(path), use_fp16=False, devices="cpu", pooling_method="mcls")
    texts = [LONG, "a question", *LITERALS[:1]]
    found = model.encode(texts, max_length=8192, return_sparse=True, return_colbert_vecs=True)
    expected = [plain(tokenise(text)) for text in texts]
    dense = normalize(torch.stack([text.dense for text in expected]), dim=-1)
    np.testing.assert_allclose(found["dense_vecs"], dense, rtol=0, atol=2e-5)
    for vectors, text in zip(found["colbert_vecs"], expected, strict=True):
        np.testing.assert_allclose(vectors, normalize(text.colbert, dim=-1), rtol=0, atol=2e-5)
    pairs = [("a question", LONG), (LONG, "a question")]
    scores = model.compute_score(pairs, max_passage_length=8192, max_query_length=8192)
    assert scores["dense"] == pytest.approx([float(dense[1] @ dense[0])] * 2, abs=2e-5)
    q, p = (normalize(expected[i].colbert, dim=-1) for i in (1, 0))
    assert scores["colbert"][0] == pytest.approx(float((q @ p.T).amax(1).mean()), abs=2e-5)


def test_a_checkpoint_asks_for_it(tmp_path) -> None:
    path = make_checkpoint(tmp_path, pooling="cls")
    file = path / "1_Pooling" / "config.json"
    raw = json.loads(file.read_text())
    file.write_text(json.dumps({**raw, "m3fast_pooling": "mcls"}))
    engine = Engine.from_pretrained(path, device="cpu")
    assert engine.options.pooling == "mcls"
    assert engine.encode(LONG, max_length=512).n_tokens[0] == 512
    assert Engine.from_pretrained(path, device="cpu", pooling="cls").options.pooling == "cls"
    for wrong in ("max", ["mcls"], True):
        file.write_text(json.dumps({**raw, "m3fast_pooling": wrong}))
        with pytest.raises(CheckpointError, match="m3fast_pooling: expected one of"):
            Engine.from_pretrained(path, device="cpu")


def test_command_line(tmp_path) -> None:
    """Such a checkpoint; parts of another pooling are not gone on with."""
    path = make_checkpoint(tmp_path / "model", pooling="cls")
    file = path / "1_Pooling" / "config.json"
    file.write_text('{"m3fast_pooling": "mcls"}')
    (tmp_path / "in.txt").write_text(f"{LONG}\nshort\n")
    command = ["encode", str(tmp_path / "in.txt"), "-o", str(tmp_path / "out.npz"),
               "--model", str(path), "--dtype", "float32", "--device", "cpu"]  # fmt: skip
    assert main(command) == 0
    found = np.load(tmp_path / "out.npz")
    engine = Engine.from_pretrained(path, device="cpu", dtype="float32")
    expected = engine.encode([LONG, "short"])
    np.testing.assert_array_equal(found["n_tokens"], expected.n_tokens)
    np.testing.assert_allclose(found["dense"], expected.dense, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(found["colbert_offsets"], expected.colbert.offsets)
    corpus = Corpus(str(tmp_path / "in.txt"), "txt")
    plain = Engine.from_pretrained(path, device="cpu", dtype="float32", pooling="cls")
    a, b = (_manifest(e, corpus, ["dense"], "float32") for e in (engine, plain))
    assert a != b


def test_bad_input(path, monkeypatch) -> None:
    with pytest.raises(InputError, match=r"pooling: expected one of .*'mcls'.*found 'mclss'"):
        Engine.from_pretrained(path, device="cpu", pooling="mclss")
    tokenizer = Tokenizer.from_dir(path)
    tokenizer.cls_id = None
    monkeypatch.setattr(Tokenizer, "from_dir", lambda path: tokenizer)
    with pytest.raises(InputError, match="pooling: 'mcls' needs a CLS token"):
        Engine.from_pretrained(path, device="cpu", pooling="mcls")


def test_verifys_plain_computation(engine, texts) -> None:
    given = [texts[i] for i in (1, 5, 9)]
    exact, _ = plain_vectors(engine, engine.tokenise(given, 8192), torch.float64)
    found = engine_vectors(engine.encode(given))
    for head, values in exact.items():
        np.testing.assert_allclose(found[head], values, rtol=0, atol=2e-5)


def test_limits_and_places() -> None:
    """Every limit is used up as far as it can be, and CLS stand at 256, 512, …"""
    made = {n: len(with_cls([7] * n)[0]) for n in range(1, 1300)}
    for limit in range(3, 1200):
        assert plain_limit(limit) == max(n for n, length in made.items() if length <= limit)
    assert plain_limit(8192) == 8161
    texts = [[7] * n for n in (1, 256, 257, 900, 2)]
    flat = np.array([i for text in texts for i in text], np.int32)
    offsets = np.cumsum([0, *map(len, texts)])
    found = insert_cls(TokenIds(flat, offsets, np.zeros(5, bool)), CLS)
    expected = [with_cls(text)[0] for text in texts]
    assert found.ids.dtype == np.int32 and found.offsets.dtype == np.int64
    assert found.ids.tolist() == [i for text in expected for i in text]
    assert np.diff(found.offsets).tolist() == [len(text) for text in expected]
    none = TokenIds(np.empty(0, np.int32), np.zeros(1, np.int64), np.zeros(0, bool))
    assert len(insert_cls(none, CLS)) == 0


def test_the_devices_tables_depend_on_no_value() -> None:
    """What a CUDA graph asks for: FakeTensorMode refuses sizes and reads that hang on values."""
    with FakeTensorMode():
        ends, texts = torch.zeros(9, dtype=torch.int32), torch.zeros(600, dtype=torch.int32)
        rows = pooled_rows(ends, "mcls", 600, 10)
        words = word_rows(texts, ends, "mcls", 600)
        assert rows is not None and rows.shape == (10,) and rows.dtype == torch.int64
        assert words is not None and words.shape == (600,) and words.dtype == torch.int64
        with pytest.raises(DynamicOutputShapeException):
            texts.nonzero()
