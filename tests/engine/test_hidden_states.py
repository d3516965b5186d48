"""The encoder for padded callers, against transformers' own model on the same padded batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoints import TEXTS, make_checkpoint
from transformers import AutoModel

from m3fast import Engine, InputError


@pytest.fixture(scope="module", params=["xlm-roberta", "bert"])
def path(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    return make_checkpoint(folder, seed=7, model_type=request.param, m3_heads=False)


@pytest.fixture(scope="module")
def engine(path) -> Engine:
    return Engine.from_pretrained(path, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def model(path):
    return AutoModel.from_pretrained(path).eval()


def padded(engine, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = engine.tokenizer.encode(TEXTS, 60)
    rows = [torch.from_numpy(tokens.ids[a:b]).long() for a, b in
            zip(tokens.offsets, tokens.offsets[1:], strict=False)]  # fmt: skip
    ids = torch.nn.utils.rnn.pad_sequence(rows, True, engine.config.pad_id, side)
    ones = [torch.ones_like(row) for row in rows]
    return ids, torch.nn.utils.rnn.pad_sequence(ones, True, 0, side)


@pytest.mark.parametrize("side", ["right", "left"])
def test_equals_transformers(engine, model, side) -> None:
    ids, mask = padded(engine, side)
    found = engine.hidden_states(ids, mask)
    with torch.inference_mode():
        expected = model(input_ids=ids, attention_mask=mask).last_hidden_state
    assert found.shape == (*ids.shape, 40) and found.dtype == torch.float32
    assert (found - expected)[mask.bool()].abs().max() < 1e-5
    assert (found[mask == 0] == 0).all()


def test_other_masks(engine, model) -> None:
    ids, mask = padded(engine, "right")
    holes = mask * (torch.arange(mask.shape[1]) % 5 != 3)
    with torch.inference_mode():
        expected = model(input_ids=ids, attention_mask=holes).last_hidden_state
    found = engine.hidden_states(ids.int(), holes.bool())
    assert (found - expected)[holes.bool()].abs().max() < 1e-5
    alone = engine.hidden_states(ids[:1, :5])
    assert torch.equal(alone, engine.hidden_states(ids[:1, :5], torch.ones(1, 5)[:, :].int()))
    assert engine.hidden_states(ids, torch.zeros_like(mask)).abs().max() == 0
    assert engine.hidden_states(torch.zeros(0, 4, dtype=torch.int64)).shape == (0, 4, 40)


def test_ids_behind_the_mask_do_not_matter(engine) -> None:
    ids, mask = padded(engine, "right")
    wild = torch.where(mask == 0, engine.config.pad_id, ids)
    wild[mask == 0] = 10**6
    assert torch.equal(engine.hidden_states(ids, mask), engine.hidden_states(wild, mask))


def test_bad_input(engine) -> None:
    ids = torch.zeros(2, 4, dtype=torch.int64)
    for arguments, name in [
        (([[0, 2]],), "input_ids: expected a tensor"),
        ((ids.float(),), "input_ids: expected integers"),
        ((ids[0],), r"input_ids: expected shape \[B, L\]"),
        ((ids, ids[:, :3]), "attention_mask: expected shape"),
        ((ids, ids.double()), "attention_mask: expected integers"),
        ((ids - 1,), "input_ids: expected 0 to .* found -1"),
        ((ids + 10**6,), "input_ids: expected 0 to .* found 0 to 1000000|found 1000000"),
        ((torch.zeros(1, 600, dtype=torch.int64),), "input_ids: expected at most 51. columns"),
    ]:
        with pytest.raises(InputError, match=name):
            engine.hidden_states(*arguments)
