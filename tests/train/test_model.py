"""The encoder that is trained is the encoder that serves, before and after save()."""

from __future__ import annotations

import json
from pathlib import Path

import FlagEmbedding
import numpy as np
import pytest
import torch
from checkpoints import TEXTS, make_checkpoint
from training import small_model

from m3fast import Engine
from m3fast.errors import CheckpointError
from m3fast.model.packing import pack_texts
from m3fast.text.tokenizer import Tokenizer
from m3fast.train import model
from m3fast.train.model import HeadOutputs, Model
from m3fast.types import PackedBatch, Selection

CPU = torch.device("cpu")
SHAPES = {
    "odd": dict(hidden=40, heads=5, ffn=72, seed=1),
    "wide-heads": dict(hidden=128, heads=2, ffn=96, layers=1, colbert_dim=24, seed=2),
    "bin": dict(hidden=32, heads=4, layers=3, safetensors=False, colbert_dim=48, seed=3),
}


@pytest.fixture(scope="module", params=list(SHAPES))
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model") / "m", **SHAPES[request.param])


@pytest.fixture(scope="module")
def engine(path: Path) -> Engine:
    return Engine.from_pretrained(path, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def tokenizer(path: Path) -> Tokenizer:
    return Tokenizer.from_dir(path)


@pytest.fixture(scope="module")
def changed(path: Path) -> Model:
    """As if trained: no weight is as it stands in the file, and all are float16's numbers."""
    model = Model(path, CPU)
    random = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for tensor in model.tensors().values():
            tensor += 0.1 * torch.randn(tensor.shape, generator=random)
            tensor.copy_(tensor.half())
    return model


@pytest.mark.parametrize(("stays", "plain"), [(0.0, 0), (0.0, 512), (1e9, 0)])
def test_rows_padded_throughout_or_between_change_nothing(
    changed: Model, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, stays: float, plain: int
) -> None:
    """Padded from the first layer on, or in attention alone, as plain products or by SDPA."""
    tokens = tokenizer.encode(TEXTS, 64)
    batch = pack_texts([Selection(tokens, np.arange(len(TEXTS)))], changed.config)
    found = []
    for each in ((1e9, 512), (stays, plain)):
        monkeypatch.setattr(model, "STAYS", each[0])
        monkeypatch.setattr(model, "PLAIN", each[1])
        states: list[torch.Tensor] = []
        outputs = changed.encode(batch, False, states)
        sum(o.sum() for o in (outputs.dense, outputs.token_weights, outputs.vectors)).backward()
        grads = [t.grad for t in changed.tensors().values()]
        for tensor in changed.tensors().values():
            tensor.grad = None
        found.append([outputs.dense, outputs.token_weights, outputs.vectors, *states, *grads])
        assert states[-1].shape == (batch.n_tokens, changed.config.hidden_size)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def saved(changed: Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Engine]:
    """What `changed` saves, and the engine that reads it."""
    out = tmp_path_factory.mktemp("saved") / "out"
    changed.save(out)
    return out, Engine.from_pretrained(out, dtype="float32", device="cpu")


def packed(tokenizer: Tokenizer, model: Model, order: np.ndarray) -> PackedBatch:
    tokens = tokenizer.encode(TEXTS, model.config.max_length)
    return pack_texts([Selection(tokens, order)], model.config)


def assert_same(
    tokenizer: Tokenizer, batch: PackedBatch, out: HeadOutputs, order: np.ndarray, engine: Engine
) -> None:
    found = engine.encode(TEXTS)
    assert found.sparse is not None and found.colbert is not None
    weights = found.sparse.to_dicts()
    for i, text in enumerate(order):
        span = slice(batch.cu_seqlens[i], batch.cu_seqlens[i + 1])
        np.testing.assert_allclose(out.dense[i], found.dense[text], atol=1e-5)
        np.testing.assert_allclose(out.vectors[span][1:], found.colbert[text], atol=1e-5)
        words: dict[int, float] = {}
        ids, token_weights = batch.ids[span].tolist(), out.token_weights[span].tolist()
        for token, weight in zip(ids, token_weights, strict=True):
            if token not in tokenizer.dropped_ids and weight > 0:
                words[token] = max(weight, words.get(token, 0))
        assert_same_words(words, weights[text])


def assert_same_words(found: dict[int, float], wanted: dict[int, float]) -> None:
    """A word that one side gives a weight near 0 may be none of the other's."""
    for token in found.keys() | wanted.keys():
        assert found.get(token, 0) == pytest.approx(wanted.get(token, 0), abs=1e-5)


@pytest.mark.parametrize("recompute", [False, True])
def test_equals_the_engine(
    path: Path, tokenizer: Tokenizer, engine: Engine, recompute: bool
) -> None:
    model = Model(path, CPU, recompute)
    order = np.random.default_rng(0).permutation(len(TEXTS))
    batch = packed(tokenizer, model, order)
    out = HeadOutputs(*(t.detach() for t in vars_of(model.encode(batch, False))))
    assert_same(tokenizer, batch, out, order, engine)
    # One text, and texts of one length, which need no mask.
    for alone in (np.array([3]), np.array([1, 1, 1])):
        batch = packed(tokenizer, model, alone)
        with torch.no_grad():
            again = model.encode(batch, False)
        for i, text in enumerate(alone):
            place = order.tolist().index(text)
            torch.testing.assert_close(again.dense[i], out.dense[place], atol=1e-5, rtol=0)


def vars_of(out: HeadOutputs) -> tuple[torch.Tensor, ...]:
    return out.dense, out.token_weights, out.vectors


def test_bf16_is_near_fp32(path: Path, tokenizer: Tokenizer) -> None:
    model = Model(path, CPU)
    batch = packed(tokenizer, model, np.arange(len(TEXTS)))
    with torch.no_grad():
        wide, narrow = model.encode(batch, False), model.encode(batch, True)
    assert not torch.equal(wide.dense, narrow.dense)
    for a, b in zip(vars_of(wide), vars_of(narrow), strict=True):
        assert b.dtype == torch.float32
        torch.testing.assert_close(a, b, atol=0.1, rtol=0.05)


def test_save_and_load(changed: Model, saved: tuple[Path, Engine], tokenizer: Tokenizer) -> None:
    out, engine = saved
    again = Model(out, CPU)
    assert again.config == changed.config
    assert changed.tensors().keys() == again.tensors().keys()
    for name, tensor in changed.tensors().items():
        assert torch.equal(tensor, again.tensors()[name]), name
    order = np.arange(len(TEXTS))
    batch = packed(tokenizer, changed, order)
    with torch.no_grad():
        found = changed.encode(batch, False)
    assert_same(tokenizer, batch, found, order, engine)


def test_flagembedding_reads_what_is_saved(changed: Model, saved: tuple[Path, Engine]) -> None:
    out, engine = saved
    size = len(changed.tensors()["colbert.bias"])
    theirs = FlagEmbedding.BGEM3FlagModel(
        str(out), use_fp16=False, devices="cpu", colbert_dim=size
    ).encode(TEXTS, return_dense=True, return_sparse=True, return_colbert_vecs=True)
    ours = engine.encode(TEXTS)
    assert ours.sparse is not None and ours.colbert is not None
    np.testing.assert_allclose(theirs["dense_vecs"], ours.dense, atol=1e-5)
    for i, row in enumerate(ours.sparse.to_dicts()):
        weights = {int(k): float(v) for k, v in theirs["lexical_weights"][i].items()}
        assert_same_words(weights, row)
        np.testing.assert_allclose(theirs["colbert_vecs"][i], ours.colbert[i], atol=1e-5)


def test_files(tmp_path: Path) -> None:
    first = make_checkpoint(tmp_path / "first", pooling="cls")
    config = json.loads((first / "config.json").read_text())
    own = {"m3fast_random_weights": True, "dtype": "float32", "id2label": {"0": "a"}}
    (first / "config.json").write_text(json.dumps(config | own))
    (first / "unrelated.bin").touch()
    out = tmp_path / "deep" / "out"
    Model(first, CPU).save(out)
    assert (out / "model.safetensors").stat().st_mode == (out / "config.json").stat().st_mode
    made = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    wanted = {"config.json", "model.safetensors", "sparse_linear.pt", "colbert_linear.pt"}
    tokenizer = {p.name for p in first.glob("*token*")}
    assert made == wanted | tokenizer | {"1_Pooling/config.json"}
    for name in tokenizer:
        assert (out / name).read_bytes() == (first / name).read_bytes()
    written = json.loads((out / "config.json").read_text())
    assert written == config | {"id2label": {"0": "a"}, "torch_dtype": "float16"}
    for file, rows in (("colbert_linear.pt", 40), ("sparse_linear.pt", 1)):
        head = torch.load(out / file, weights_only=True)
        assert {k: (v.dtype, tuple(v.shape)) for k, v in head.items()} == {
            "weight": (torch.float16, (rows, 40)),
            "bias": (torch.float16, (rows,)),
        }
        assert (out / file).stat().st_size < 8000  # its own numbers, not those of a larger storage
    Model(first, CPU).save(out, torch.float32)
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "float32"
    assert torch.equal(Model(out, CPU).weights.word, Model(first, CPU).weights.word)


def test_every_weight_takes_part(path: Path, tokenizer: Tokenizer) -> None:
    model = Model(path, CPU)
    out = model.encode(packed(tokenizer, model, np.arange(len(TEXTS))), False)
    random = torch.Generator().manual_seed(0)
    total = sum((t * torch.randn(t.shape, generator=random)).sum() for t in vars_of(out))
    assert isinstance(total, torch.Tensor)
    total.backward()
    for name, tensor in model.tensors().items():
        assert tensor.is_leaf and tensor.grad is not None and tensor.grad.abs().sum() > 0, name


def test_models_that_cannot_be_trained(tmp_path: Path) -> None:
    plain = small_model(tmp_path / "plain", m3_heads=False)
    with pytest.raises(CheckpointError, match=r"expected colbert_linear.pt and sparse_linear.pt"):
        Model(plain, CPU)
    mean = small_model(tmp_path / "mean", pooling="mean")
    with pytest.raises(CheckpointError, match="pooling: expected 'cls', found 'mean'"):
        Model(mean, CPU)
