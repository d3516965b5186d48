"""Losses and gradients of one batch, in parts where it is larger than memory allows.

A batch of more than `sub_batch_tokens` is encoded part by part without gradients; the losses over
all of it give the gradient of each output; then each part is encoded once more and takes its
gradients to the weights. So the memory is that of one part, the losses are those of the batch
(the paper's sub-batches, section 3.4; Gao et al., 2101.06983).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from m3fast.model.packing import pack_texts
from m3fast.train.config import CONTRASTIVE, DISTILLED, TEACHER
from m3fast.train.losses import Side, contrastive_losses, teacher_losses
from m3fast.train.model import HeadOutputs
from m3fast.types import Selection

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from m3fast.text.tokenizer import Tokenizer
    from m3fast.train.config import TrainConfig
    from m3fast.train.data import TextBatch
    from m3fast.train.model import Model
    from m3fast.types import PackedBatch, TokenIds

# Tokens from which a part is large enough, and how much longer than its first text is too long.
LARGE, LONGER = 2048, 1.25


@dataclass(frozen=True, slots=True)
class Part:
    """Texts encoded together. order: int64 [n], their places among the side's texts."""

    batch: PackedBatch
    order: np.ndarray


def forward_backward(
    model: Model,
    tokenizer: Tokenizer,
    batch: TextBatch,
    config: TrainConfig,
    weights: Mapping[str, float],
    bf16: bool,
    seed: Sequence[int],
) -> tuple[dict[str, float], int]:
    """Add a batch's gradients to those of the weights.

    Args:
        weights: of each loss. None is computed of a kind (contrastive, teacher) of which all
            have weight 0.

    Returns:
        The losses by name, and the tokens of the batch.
    """
    rng = np.random.default_rng([*seed, 2])
    sides = [
        _parts(model, tokenizer.encode(texts, length), config, rng)
        for texts, length in (
            (batch.queries, config.query_length),
            (batch.passages, config.passage_length),
        )
        if texts
    ]
    parts = [part for side in sides for part in side]
    n_tokens = sum(part.batch.n_tokens for part in parts)
    whole = n_tokens <= config.sub_batch_tokens
    with torch.set_grad_enabled(whole):
        outputs = [model.encode(part.batch, bf16) for part in parts]
    if not whole:
        outputs = [HeadOutputs(*(t.requires_grad_() for t in _tensors(o))) for o in outputs]
    losses = _losses(model, batch, sides, outputs, tokenizer, config, weights, bf16)
    total = sum(weights[name] * loss for name, loss in losses.items())
    assert isinstance(total, torch.Tensor)
    total.backward()
    if not whole:
        for part, kept in zip(parts, outputs, strict=True):
            again = _tensors(model.encode(part.batch, bf16))
            pairs = [
                (a, k.grad)
                for a, k in zip(again, _tensors(kept), strict=True)
                if k.grad is not None
            ]
            torch.autograd.backward([a for a, _ in pairs], [g for _, g in pairs])
    found = torch.stack([loss.detach() for loss in losses.values()]).tolist()
    return dict(zip(losses, found, strict=True)), n_tokens


def _tensors(outputs: HeadOutputs) -> list[torch.Tensor]:
    return [getattr(outputs, f.name) for f in fields(outputs)]


def _parts(
    model: Model, tokens: TokenIds, config: TrainConfig, rng: np.random.Generator
) -> list[Part]:
    """Texts by length, in parts of at most sub_batch_tokens with padding, at random positions.

    A part that is large enough ends where texts get longer, so that little of it is padding.
    """
    lengths = tokens.lengths
    order, c = np.argsort(lengths, kind="stable"), model.config
    parts: list[Part] = []
    begin, total = 0, 0
    for end in range(1, len(order) + 1):
        total += lengths[order[end - 1]]
        following = lengths[order[end]] if end < len(order) else 0
        full = following * (end + 1 - begin) > config.sub_batch_tokens
        longer = total >= LARGE and following > LONGER * lengths[order[begin]]
        if end == len(order) or full or longer:
            total = 0
            chosen = order[begin:end]
            begin = end
            packed = pack_texts([Selection(tokens, chosen)], c)
            shift = rng.integers(0, c.max_length - lengths[chosen] + 1)
            shift[rng.random(len(chosen)) >= config.random_positions] = 0
            # A literal pad token stays at its own position.
            moved = packed.positions >= c.position_offset
            moved[packed.cu_seqlens[:-1]] = False  # nor leaves a first token its own
            moves = np.repeat(shift, lengths[chosen]) * moved
            positions = packed.positions + moves.astype(np.int32)
            parts.append(Part(replace(packed, positions=positions), chosen))
    return parts


def _side(parts: Sequence[Part], outputs: Sequence[HeadOutputs]) -> Side:
    device = outputs[0].dense.device
    order = torch.from_numpy(np.concatenate([part.order for part in parts])).to(device)
    texts = np.concatenate([part.order[part.batch.texts] for part in parts])
    ids = np.concatenate([part.batch.ids for part in parts])
    first = np.diff(texts, prepend=-1) != 0
    return Side(
        torch.cat([o.dense for o in outputs])[order.argsort()],
        torch.cat([o.token_weights for o in outputs]),
        torch.cat([o.vectors for o in outputs]),
        torch.from_numpy(ids).to(device, torch.int64),
        torch.from_numpy(texts).to(device, torch.int64),
        torch.from_numpy(first).to(device),
    )


def _losses(
    model: Model,
    batch: TextBatch,
    sides: Sequence[list[Part]],
    outputs: Sequence[HeadOutputs],
    tokenizer: Tokenizer,
    config: TrainConfig,
    weights: Mapping[str, float],
    bf16: bool,
) -> dict[str, torch.Tensor]:
    cut = len(sides[0])
    made = [_side(sides[0], outputs[:cut])]
    if batch.queries:
        made.append(_side(sides[1], outputs[cut:]))
    losses: dict[str, torch.Tensor] = {}
    device = made[0].dense.device
    if batch.queries and any(weights[name] for name in (*CONTRASTIVE, *DISTILLED)):
        positive = torch.arange(len(batch.queries), device=device)
        losses = contrastive_losses(
            made[0], made[1], positive, _repeated(batch).to(device),
            sorted(tokenizer.dropped_ids), config.temperature, config.hybrid, bf16,
        )  # fmt: skip
    if batch.teacher is not None and any(weights[name] for name in TEACHER):
        dense = torch.cat([side.dense for side in made])
        teacher = torch.from_numpy(batch.teacher).to(device)
        losses |= teacher_losses(dense, teacher, len(batch.queries), config.teacher_temperature)
    return losses


def _repeated(batch: TextBatch) -> torch.Tensor:
    """bool [nq, np], True where another passage is the query's own positive, or the query."""
    first: dict[str, int] = {}
    number = np.array([first.setdefault(text, len(first)) for text in batch.passages])
    own = np.array([first.get(text, -1) for text in batch.queries])
    n = len(batch.queries)
    same = (number[None] == number[:n, None]) | (number[None] == own[:, None])
    same[np.arange(n), np.arange(n)] = False
    return torch.from_numpy(same)
