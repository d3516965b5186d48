"""Padded to packed and back on the device, GPU time, beside a copy of as many bytes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch

from bench.core import gputime
from bench.core.harness import OURS, Bench, Row, share
from bench.core.measure import Candidate
from bench.peers import ops

AHEAD = 1e-3
COPY = "copy of as many bytes"


@dataclass
class Padded:
    """ids int64 [B, L], mask alike, hidden [B, L, C], packed [T, C], slots int32 [B, L]."""

    ids: torch.Tensor
    mask: torch.Tensor
    hidden: torch.Tensor
    packed: torch.Tensor
    slots: torch.Tensor


def _padded(bench: Bench, seed: int) -> Padded:
    from m3fast.kernels.padding import unpad

    batch, longest, width = bench.pick((128, 512, 1024), (3, 9, 16))
    lengths = np.random.default_rng(seed).integers(2, longest + 1, batch)
    lengths[0] = longest
    random = torch.Generator(bench.device).manual_seed(seed)
    on = torch.from_numpy(np.arange(longest) < lengths[:, None]).to(bench.device)
    shape = (batch, longest)
    ids = torch.randint(4, 99, shape, generator=random, device=bench.device).where(on, 1)
    hidden = torch.randn(*shape, width, generator=random, device=bench.device)
    hidden = hidden.to(bench.pick(torch.bfloat16, torch.float16))
    slots = unpad(ids, on.long(), 1, total=int(lengths.sum())).slots
    return Padded(ids, on.long(), hidden, hidden[on], slots)


def _compare(
    bench: Bench, name: str, ours: Candidate, torch_way: Candidate, inputs: list[Padded],
    moved: int, expected: torch.Tensor,
) -> None:  # fmt: skip
    batch, longest, width = inputs[0].hidden.shape
    bench.compare(
        Row(
            name,
            shape=f"[{batch}, {longest}, {width}], {len(inputs[0].packed)} real tokens",
            dtype=str(inputs[0].hidden.dtype).removeprefix("torch."),
            tokens=len(inputs[0].packed),
            padding=batch * longest / len(inputs[0].packed),
            moved=float(moved),
            note=f"GPU time; {moved / 1e6:.0f} MB read and written",
        ),
        {
            OURS: lambda: ours,
            "torch": lambda: torch_way,
            COPY: partial(gputime.copy_of, moved, bench.device),
        },
        inputs,
        rounds=100,
        aims={COPY: share(0.8)},
        judge=ops.near(expected.float(), 0),
        ahead=AHEAD,
    )


@pytest.mark.first
def test_pack_rows(bench: Bench) -> None:
    from m3fast.kernels.padding import pack_rows

    inputs = [_padded(bench, seed) for seed in range(2)]
    first = inputs[0]
    _compare(
        bench,
        "hidden states, padded to packed",
        lambda x: pack_rows(x.hidden, x.slots, len(x.packed)),
        lambda x: x.hidden[x.mask.bool()],
        inputs,
        2 * first.packed.nbytes,
        first.packed,
    )


@pytest.mark.first
def test_pad_rows(bench: Bench) -> None:
    from m3fast.kernels.padding import pad_rows

    inputs = [_padded(bench, seed) for seed in range(2)]
    first = inputs[0]

    def plain(x: Padded) -> torch.Tensor:
        out = torch.zeros_like(x.hidden)
        out[x.mask.bool()] = x.packed
        return out

    _compare(
        bench,
        "hidden states, packed to padded",
        lambda x: pad_rows(x.packed, x.slots),
        plain,
        inputs,
        first.packed.nbytes + first.hidden.nbytes,
        first.hidden * first.mask[..., None],
    )


def test_unpad_ids(bench: Bench) -> None:
    """One launch for ids, positions, text indices, cu_seqlens and slots, none of them awaited."""
    from m3fast.kernels.padding import unpad

    inputs = [_padded(bench, seed) for seed in range(2)]
    first = inputs[0]
    tokens = len(first.packed)

    def plain(x: Padded) -> torch.Tensor:
        on = x.mask.bool()
        lengths = x.mask.sum(1)
        positions = (x.ids.ne(1).cumsum(1) * x.ids.ne(1) + 1)[on]
        torch.arange(len(x.ids), device=x.ids.device).repeat_interleave(lengths)
        torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
        positions.int()
        return x.ids[on].int()

    _compare(
        bench,
        "ids, padded to packed",
        lambda x: unpad(x.ids, x.mask, 1, total=len(x.packed)).ids,
        plain,
        inputs,
        2 * first.ids.nbytes + 4 * (3 * tokens + first.ids.numel()),
        first.ids[first.mask.bool()],
    )
