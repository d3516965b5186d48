"""Parts of the strong baseline on a CPU: compiled elementwise steps, groups of attention."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F


def add_norm(
    y: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> torch.Tensor:
    return F.layer_norm(y + x, x.shape[-1:], weight, bias, eps)


def unit(x: torch.Tensor) -> torch.Tensor:
    return F.normalize(x.float(), dim=-1)


def weigh(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """relu(x · w + b) float32 [T]"""
    return torch.relu((x.float() * weight.float()).sum(-1) + bias.float())


EAGER = {"add_norm": add_norm, "unit": unit, "weigh": weigh}


@cache
def compiled() -> tuple[dict[str, Callable[..., Any]], str]:
    """The elementwise parts under torch.compile, and "", or eager ones and the reason."""
    fast = {name: torch.compile(part, dynamic=True) for name, part in EAGER.items()}
    x, row = torch.randn(24, 64), torch.randn(64)
    try:
        with torch.inference_mode():
            fast["add_norm"](x, x, row, row, 1e-5)
    except Exception as error:  # no compiler, or one that Inductor cannot use
        return EAGER, f"eager, since torch.compile fails: {type(error).__name__}"
    return fast, ""


def groups_of(lengths: list[int], width: int, dtype: torch.dtype) -> list[tuple[Any, ...]]:
    """(first row, end, texts, longest, index of padded rows, mask) of each group, long to short.

    index and mask are None where all lengths are equal. The mask [B, 1, 1, S] is added to scores.
    """
    made: list[tuple[Any, ...]] = []
    at, i = 0, 0
    while i < len(lengths):
        longest, j = lengths[i], i
        while j < len(lengths) and longest - lengths[j] < width:
            j += 1
        its = torch.tensor(lengths[i:j])
        end = at + int(its.sum())
        index = mask = None
        if its[-1] < longest:
            columns = torch.arange(longest)
            padding = columns >= its[:, None]
            starts = its.cumsum(0) - its
            # A padded position reads the last row of its text: any finite one would do.
            index = (starts[:, None] + columns.minimum(its[:, None] - 1)).view(-1)
            mask = torch.zeros(padding.shape, dtype=dtype).masked_fill_(padding, -torch.inf)
            mask = mask[:, None, None]
        made.append((at, end, j - i, longest, index, mask))
        at, i = end, j
    return made
