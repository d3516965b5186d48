"""One step: gradients in parts and whole, the order of texts, positions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import TEXTS
from training import pairs, small_model, texts_of, write_lines

from m3fast.text.tokenizer import Tokenizer
from m3fast.train import DataFile, TrainConfig, step
from m3fast.train.config import LOSSES, PAPER
from m3fast.train.data import Batches, TextBatch
from m3fast.train.model import Model
from m3fast.train.step import _parts, _repeated, _side, forward_backward

WEIGHTS = PAPER | {"teacher_cosine": 0.3, "teacher_kl": 0.2}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("model") / "m", hidden=24, heads=3, ffn=40)


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> TextBatch:
    rows = pairs("de", "en")[:30]
    folder = tmp_path_factory.mktemp("data")
    vectors = np.random.default_rng(0).standard_normal((len(texts_of(rows)), 24))
    np.save(folder / "a.npy", vectors)
    data = DataFile(write_lines(folder / "a.jsonl", rows), teacher=folder / "a.npy")
    return next(Batches(config(data=(data,), batch_pairs=12, negatives=1)))


def config(**values: Any) -> TrainConfig:
    return replace(TrainConfig("m", Path("out"), (), 1, random_positions=0.0), **values)


def gradients(
    path: Path, batch: TextBatch, weights: dict[str, float] = WEIGHTS, **values: Any
) -> tuple[dict[str, float], dict[str, torch.Tensor], int]:
    made = config(**values)
    model = Model(path, torch.device("cpu"), made.recompute_layers)
    tokenizer = Tokenizer.from_dir(path)
    losses, tokens = forward_backward(model, tokenizer, batch, made, weights, False, [1, 2])
    grads = {k: t.grad for k, t in model.tensors().items()}
    return losses, {k: g for k, g in grads.items() if g is not None}, tokens


def assert_close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, grad in a.items():
        scale = float(grad.abs().max())
        torch.testing.assert_close(grad, b[name], rtol=1e-4, atol=1e-4 * scale, msg=name)


@pytest.mark.parametrize("positions", [0.0, 1.0])
@pytest.mark.parametrize("tokens", [1, 60, 300])
def test_parts_equal_the_whole(path: Path, batch: TextBatch, tokens: int, positions: float) -> None:
    """As many parts as texts, several, a few; at random positions each text keeps its own."""
    if positions and tokens == 300:
        return
    losses, whole, count = gradients(path, batch)
    assert list(losses) == list(LOSSES)
    assert len(whole) == len(Model(path, torch.device("cpu")).tensors())
    assert all(grad.abs().sum() > 0 for grad in whole.values())
    if positions:
        # Parts draw their positions as they are made, so compare recomputing with not.
        losses, whole, _ = gradients(
            path, batch, sub_batch_tokens=tokens, random_positions=1.0, recompute_layers=True
        )
    again, parts, n = gradients(path, batch, sub_batch_tokens=tokens, random_positions=positions)
    assert n == count > 300
    assert again == pytest.approx(losses, rel=1e-5)
    assert_close(whole, parts)


@pytest.mark.parametrize("tokens", [100, 10**6])
def test_recomputed_layers_change_nothing(path: Path, batch: TextBatch, tokens: int) -> None:
    losses, kept, _ = gradients(path, batch, sub_batch_tokens=tokens)
    again, recomputed, _ = gradients(path, batch, sub_batch_tokens=tokens, recompute_layers=True)
    assert losses == again
    assert_close(kept, recomputed)


def test_texts_alone_in_parts(path: Path, batch: TextBatch) -> None:
    texts = replace(batch, queries=[], passages=batch.queries + batch.passages)
    losses, whole, _ = gradients(path, texts)
    assert list(losses) == ["teacher_cosine", "teacher_kl"]
    assert {n.split(".")[0] for n in whole} == {"embeddings", "layers"}  # the heads learn nothing
    again, parts, _ = gradients(path, texts, sub_batch_tokens=60)
    assert again == pytest.approx(losses, rel=1e-5)
    assert_close(whole, parts)


def test_order_of_texts_does_not_matter(path: Path, batch: TextBatch) -> None:
    n = len(batch.queries)
    order = np.random.default_rng(3).permutation(n)
    others = n + np.random.default_rng(4).permutation(len(batch.passages) - n)
    rows = np.concatenate([order, n + order, n + others])
    assert batch.teacher is not None
    texts = batch.queries + batch.passages
    shuffled = replace(
        batch,
        queries=[texts[i] for i in rows[:n]],
        passages=[texts[i] for i in rows[n:]],
        teacher=batch.teacher[rows],
    )
    for tokens in (10**6, 60):
        losses, grads, _ = gradients(path, batch, sub_batch_tokens=tokens)
        again, moved, _ = gradients(path, shuffled, sub_batch_tokens=tokens)
        assert again == pytest.approx(losses, rel=1e-5)
        assert_close(grads, moved)


def test_a_repeated_passage_is_no_negative() -> None:
    batch = TextBatch(["a", "b", "c", "d"], ["P", "Q", "P", "c", "Q", "b", "d", "d"], 0, None)
    assert _repeated(batch).int().tolist() == [
        [0, 0, 1, 0, 0, 0, 0, 0],  # its positive again
        [0, 0, 0, 0, 1, 1, 0, 0],  # its positive again, the query itself
        [1, 0, 0, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 1, 1],  # positive c of d is another query's text, d twice its own
    ]


def test_a_repeated_passage_changes_no_loss(path: Path) -> None:
    """Its own positive once more among the negatives of the only query leaves the losses."""
    once = TextBatch(["the quick dog"], ["the lazy dog", "a fox"], 0, None)
    twice = replace(once, passages=[*once.passages, "the lazy dog", "the quick dog"])
    assert gradients(path, twice)[0] == pytest.approx(gradients(path, once)[0], rel=1e-5)


def test_weights_choose_what_is_computed(path: Path, batch: TextBatch) -> None:
    none = dict.fromkeys(LOSSES, 0.0)
    losses, grads, _ = gradients(path, batch, none | {"teacher_kl": 1.0})
    assert list(losses) == ["teacher_cosine", "teacher_kl"]
    losses, one, _ = gradients(path, batch, none | {"sparse": 1.0})
    assert "dense" in losses and "teacher_kl" not in losses
    _, two, _ = gradients(path, batch, none | {"sparse": 2.0})
    assert_close({k: 2 * g for k, g in one.items()}, two)
    assert not one["colbert.weight"].any() and one["sparse.weight"].any()
    assert "sparse.weight" not in grads


def test_a_batch_without_any_word(path: Path) -> None:
    empty = TextBatch(["", ""], ["", "a dog", ""], 0, None)
    losses, grads, _ = gradients(path, empty)
    assert all(np.isfinite(list(losses.values())))
    assert all(grad.isfinite().all() for grad in grads.values())


def positions_of(path: Path, texts: list[str], length: int, share: float, *seeds: int) -> Any:
    """The parts of each seed."""
    model = Model(path, torch.device("cpu"))
    tokens = Tokenizer.from_dir(path).encode(texts, length)
    made = config(random_positions=share, sub_batch_tokens=200)
    parts = [_parts(model, tokens, made, np.random.default_rng(seed)) for seed in seeds]
    return model.config, tokens, parts


def test_random_positions(path: Path) -> None:
    shifts = []
    c, tokens, drawn = positions_of(path, TEXTS, 60, 0.5, *range(60))
    for parts in drawn:
        found = np.concatenate([part.order for part in parts])
        assert sorted(found) == list(range(len(TEXTS)))
        for part in parts:
            lengths = np.diff(part.batch.cu_seqlens)
            assert part.batch.max_seqlen == max(lengths)
            assert len(lengths) == 1 or len(lengths) * max(lengths) <= 200
            for i, text in enumerate(part.order):
                span = slice(part.batch.cu_seqlens[i], part.batch.cu_seqlens[i + 1])
                ids, positions = part.batch.ids[span], part.batch.positions[span]
                given = tokens.ids[tokens.offsets[text] : tokens.offsets[text + 1]]
                assert np.array_equal(ids, given) and len(ids) <= 60
                assert positions[0] == c.position_offset
                pad = ids == c.pad_id
                assert (positions[pad] == c.pad_id).all()
                rest = positions[1:][~pad[1:]]
                assert (np.diff(rest) == 1).all()
                assert c.position_offset <= rest[0] and rest[-1] < c.n_positions
                shifts.append(rest[0] - c.position_offset - 1)
        assert any((t == c.pad_id).any() for t in (part.batch.ids for part in parts))
    moved = np.array(shifts) > 0
    assert 0.4 < moved.mean() < 0.6  # of 720 draws: five standard deviations off
    assert np.median(np.array(shifts)[moved]) > 100  # of 512: anywhere in the table


def test_large_parts_end_where_texts_get_longer(
    path: Path, batch: TextBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = Tokenizer.from_dir(path).encode([" ".join(["a"] * n) for n in range(1, 41)], 60)
    made, model = config(sub_batch_tokens=10_000), Model(path, torch.device("cpu"))
    assert len(_parts(model, tokens, made, np.random.default_rng(0))) == 1
    _, whole, _ = gradients(path, batch)
    monkeypatch.setattr(step, "LARGE", 30)
    parts = _parts(model, tokens, made, np.random.default_rng(0))
    assert np.concatenate([part.order for part in parts]).tolist() == list(range(40))
    for part in parts[:-1]:
        lengths = part.batch.lengths
        assert lengths.sum() >= 30
        assert lengths[:-1].sum() < 30 or lengths[-1] <= step.LONGER * lengths[0]
    assert_close(whole, gradients(path, batch)[1])


def test_no_random_positions(path: Path) -> None:
    _, _, (parts,) = positions_of(path, TEXTS, 60, 0.0, 0)
    assert {int(part.batch.positions[0]) for part in parts} == {2}


def test_a_text_of_full_length_stays(path: Path) -> None:
    c, _, (parts,) = positions_of(path, ["the dog " * 900], 512, 1.0, 0)
    assert parts[0].batch.positions.tolist() == list(range(c.position_offset, c.n_positions))


def test_every_position_is_trained(path: Path, batch: TextBatch) -> None:
    """Draws reach the first and the last; and a step trains those drawn, and no other."""
    texts = [text for text in TEXTS if "<pad>" not in text]
    c, _, drawn = positions_of(path, texts, 60, 1.0, *range(200))
    seen = {int(i) for parts in drawn for part in parts for i in part.batch.positions}
    assert seen == set(range(c.position_offset, c.n_positions))

    made, model = config(random_positions=1.0), Model(path, torch.device("cpu"))
    tokenizer, rng = Tokenizer.from_dir(path), np.random.default_rng([0, 7, 2])
    forward_backward(model, tokenizer, batch, made, WEIGHTS, False, [0, 7])
    grad = model.tensors()["embeddings.position"].grad
    assert grad is not None
    used = {
        int(i)
        for side, length in (
            (batch.queries, made.query_length),
            (batch.passages, made.passage_length),
        )
        for part in _parts(model, tokenizer.encode(side, length), made, rng)
        for i in part.batch.positions
    }
    assert len(used) > 200
    assert set(grad.abs().sum(1).nonzero()[:, 0].tolist()) == used


@pytest.mark.parametrize("texts", [["a", "b c d", "e f"], ["a b c", "d e", "f"]])
@pytest.mark.parametrize("tokens", [1, 1000])
def test_a_side_knows_its_texts_and_their_first_tokens(
    path: Path, texts: list[str], tokens: int
) -> None:
    """Shortest text first or last, all in one part or each in its own."""
    model, tokenizer = Model(path, torch.device("cpu")), Tokenizer.from_dir(path)
    found = tokenizer.encode(texts, 64)
    made = config(sub_batch_tokens=tokens)
    parts = _parts(model, found, made, np.random.default_rng(0))
    with torch.no_grad():
        side = _side(parts, [model.encode(part.batch, False) for part in parts])
    assert side.ids[side.first].tolist() == [tokenizer.cls_id] * len(texts)
    assert side.first.sum() == len(texts)
    for i, (a, b) in enumerate(zip(found.offsets, found.offsets[1:], strict=False)):
        assert side.ids[side.texts == i].tolist() == found.ids[a:b].tolist()
        assert side.first[side.texts == i].tolist() == [True] + [False] * int(b - a - 1)
