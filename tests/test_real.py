"""Real weights, real texts and the real tokenizer, where a `shared/data` folder lies beside us."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import make_checkpoint

from m3fast import BGEM3FlagModel, Engine, scoring

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.exists(), reason="no shared/data beside the checkout")


@pytest.fixture(scope="module")
def granite(tmp_path_factory) -> Path:
    source = DATA / "weights/granite-embedding-30m-english"
    path = tmp_path_factory.mktemp("granite")
    for name in ("config.json", "tokenizer.json"):
        shutil.copyfile(source / name, path / name)
    shutil.copyfile(source / "model.f16.safetensors", path / "model.safetensors")
    return path


def xquad(language: str) -> tuple[list[str], list[str], list[int]]:
    raw = json.loads((DATA / f"xquad/xquad.{language}.json").read_text(encoding="utf-8"))
    paragraphs = [p for article in raw["data"] for p in article["paragraphs"]]
    questions = [(q["question"], i) for i, p in enumerate(paragraphs) for q in p["qas"][:1]]
    return [p["context"] for p in paragraphs], *map(list, zip(*questions, strict=True))


def test_real_weights_match_transformers(granite) -> None:
    from transformers import AutoModel

    engine = Engine.from_pretrained(granite, device="cpu", dtype="float32")
    passages, questions, _ = xquad("en")
    texts = passages[:6] + questions[:20] + ["", "naïve café 😀 " * 200]
    found = engine.encode(texts)
    assert found.truncated[-1]
    model = AutoModel.from_pretrained(granite, dtype=torch.float32).eval()
    tokens = engine.tokenizer.encode(texts, engine.max_length)
    for i, (a, b) in enumerate(zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)):
        with torch.no_grad():
            hidden = model(torch.tensor(tokens.ids[a:b], dtype=torch.int64)[None])[0][0, 0]
        wanted = torch.nn.functional.normalize(hidden, dim=-1).numpy()
        np.testing.assert_allclose(found.dense[i], wanted, atol=2e-6)


def test_real_weights_retrieve(granite) -> None:
    engine = Engine.from_pretrained(granite, device="cpu", dtype="float32")
    passages, questions, wanted = xquad("en")
    some = slice(0, 40)
    scores = scoring.dense_scores(
        engine.encode(questions[some]).dense, engine.encode(passages[:40], max_length=128).dense
    )
    assert (scores.argmax(1) == np.array(wanted[some])).mean() > 0.8


@pytest.fixture(scope="module")
def whole_vocabulary(tmp_path_factory):
    """The reference and the drop-in over XLM-R's 250,002 pieces."""
    import FlagEmbedding

    path = make_checkpoint(
        tmp_path_factory.mktemp("real"), tokenizer=DATA / "tokenizer", vocab=250002, hidden=16,
        heads=2,
    )  # fmt: skip
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(DATA / "bge-m3-config" / name, path / name)
    options = dict(use_fp16=False, devices="cpu", return_sparse=True)
    return FlagEmbedding.BGEM3FlagModel(str(path), **options), BGEM3FlagModel(str(path), **options)


@pytest.mark.parametrize("language", ["zh", "th", "ar", "hi"])
def test_the_real_vocabulary_against_the_reference(whole_vocabulary, language) -> None:
    passages, questions, _ = xquad(language)
    texts = passages[:3] + questions[:10]
    theirs, ours = (model.encode(texts) for model in whole_vocabulary)
    np.testing.assert_allclose(ours["dense_vecs"], theirs["dense_vecs"], atol=1e-5)
    for a, b in zip(theirs["lexical_weights"], ours["lexical_weights"], strict=True):
        keys = [k for k in a if a[k] > 1e-5]
        assert keys == [k for k in b if b[k] > 2e-5 or k in keys]
        assert all(abs(a[k] - b[k]) < 1e-5 for k in keys)
