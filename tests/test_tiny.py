"""The embedded default: what the package ships, and that its recipe gives it again."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

import m3fast.checkpoint

ROOT = Path(__file__).parents[1]
TINY = Path(m3fast.checkpoint.__file__).parent / "data" / "m3fast-tiny"
DATA = ROOT.parent / "shared" / "data"
XLMR = DATA / "tokenizer" / "tokenizer.json"
SENTENCES = DATA / "train" / "sentences.common-voice.jsonl.gz"
TEXTS = [
    "Hello world, how are you?",
    "Die Biene sammelt Nektar; l'été, ça va.",
    "你好，世界。今天天气很好！",
    "قطار الليل  Привет मधुमक्खी ห้องสมุด",
    "a <mask> b  ﬁ ①",
    "",
]


@pytest.fixture(scope="module")
def recipe() -> Any:
    spec = importlib.util.spec_from_file_location("make_tiny", ROOT / "scripts" / "make_tiny.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tokenizer_json() -> Any:
    return json.loads((TINY / "tokenizer.json").read_text(encoding="utf-8"))


def shipped_tensors() -> dict[str, torch.Tensor]:
    tensors = load_file(TINY / "model.safetensors")
    for head in ("colbert_linear", "sparse_linear"):
        state = torch.load(TINY / f"{head}.pt", weights_only=True)
        tensors |= {f"{head}.{part}": value for part, value in state.items()}
    return tensors


def test_folder_is_complete_small_and_honest() -> None:
    files = {str(p.relative_to(TINY)): p.stat().st_size for p in TINY.rglob("*") if p.is_file()}
    assert {
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "model.safetensors",
        "colbert_linear.pt",
        "sparse_linear.pt",
        "modules.json",
        "1_Pooling/config.json",
        "README.md",
        "NOTICE",
    } <= files.keys()
    assert sum(files.values()) <= 6_000_000
    card = (TINY / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: mit\n")
    assert "Random weights" in card and "never trained" in card
    assert json.loads((TINY / "config.json").read_text())["m3fast_random_weights"] is True


def test_weights_are_what_the_seed_gives(recipe: Any) -> None:
    expected, shipped = recipe.random_weights(), shipped_tensors()
    assert shipped.keys() == expected.keys()
    assert not any("pooler" in name for name in shipped)
    for name, values in expected.items():
        assert shipped[name].dtype == torch.float16, name
        assert np.array_equal(shipped[name].numpy(), values), name
        assert np.isfinite(values).all(), name


def test_small_files_are_what_the_recipe_writes(recipe: Any) -> None:
    for name, content in recipe.small_files().items():
        assert json.loads((TINY / name).read_text(encoding="utf-8")) == content, name


def test_ids_are_numbered_as_xlm_r_numbers_them(tokenizer_json: Any) -> None:
    pieces = [piece for piece, _ in tokenizer_json["model"]["vocab"]]
    assert pieces[:4] == ["<s>", "<pad>", "</s>", "<unk>"]
    assert pieces[-1] == "<mask>"
    assert len(pieces) == len(set(pieces)) == 8000
    added = {token["content"]: token["id"] for token in tokenizer_json["added_tokens"]}
    assert added == {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 7999}
    scores = [score for _, score in tokenizer_json["model"]["vocab"][4:-1]]
    assert scores == sorted(scores, reverse=True)


def test_demo_texts_are_almost_wholly_known() -> None:
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    corpus = json.loads((TINY.parent / "demo.json").read_text(encoding="utf-8"))
    texts = [row["text"] for part in corpus.values() for row in part]
    ids = [i for e in tokenizer.encode_batch(texts) for i in e.ids]
    assert ids.count(3) / len(ids) < 0.005


def test_transformers_reads_the_same_tokenizer() -> None:
    from transformers import AutoTokenizer

    theirs: Any = AutoTokenizer.from_pretrained(TINY)
    plain = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    assert len(theirs) == 8000
    assert theirs.model_max_length == 8192
    for text in TEXTS:
        assert theirs(text)["input_ids"] == plain.encode(text).ids, text


def test_flag_embedding_and_m3fast_agree_on_it() -> None:
    from FlagEmbedding import BGEM3FlagModel

    from m3fast import Engine

    theirs: Any = BGEM3FlagModel(str(TINY), use_fp16=False, devices="cpu").encode(
        TEXTS, return_sparse=True, return_colbert_vecs=True
    )
    ours = Engine.from_pretrained("m3fast-tiny", device="cpu", dtype="float32").encode(TEXTS)
    assert ours.dense is not None and ours.sparse is not None and ours.colbert is not None
    np.testing.assert_allclose(ours.dense, theirs["dense_vecs"], rtol=0, atol=1e-5)
    for mine, weights in zip(ours.sparse.to_dicts(), theirs["lexical_weights"], strict=True):
        assert list(mine) == [int(i) for i in weights]
        np.testing.assert_allclose(list(mine.values()), list(weights.values()), rtol=0, atol=1e-5)
    for mine, vectors in zip(ours.colbert, theirs["colbert_vecs"], strict=True):
        np.testing.assert_allclose(mine, vectors, rtol=0, atol=1e-5)


@pytest.mark.skipif(not XLMR.exists(), reason="needs ../shared/data")
def test_pieces_are_xlm_r_s_with_their_scores_in_their_order(tokenizer_json: Any) -> None:
    source = json.loads(XLMR.read_text(encoding="utf-8"))
    order = {piece: i for i, (piece, _) in enumerate(source["model"]["vocab"])}
    rows = tokenizer_json["model"]["vocab"]
    positions = [order[piece] for piece, _ in rows]
    assert positions == sorted(positions)
    assert all(source["model"]["vocab"][i] == row for i, row in zip(positions, rows, strict=True))
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        assert tokenizer_json[part] == source[part], part


@pytest.mark.slow
@pytest.mark.skipif(not SENTENCES.exists(), reason="needs ../shared/data")
def test_recipe_rebuilds_every_file(recipe: Any, tmp_path: Path) -> None:
    tokenizer = recipe.trim_tokenizer(XLMR, recipe.read_sentences(SENTENCES))
    recipe.write(tmp_path, tokenizer)
    for file in sorted(p for p in tmp_path.rglob("*") if p.is_file()):
        shipped = TINY / file.relative_to(tmp_path)
        if file.suffix == ".pt":  # torch's zip archive may differ between versions
            found, expected = (torch.load(f, weights_only=True) for f in (file, shipped))
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[k], expected[k]) for k in found), file.name
        else:
            assert file.read_bytes() == shipped.read_bytes(), file.name
