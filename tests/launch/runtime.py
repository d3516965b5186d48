"""BGE-M3's runner over the driver that executes nothing: its width, its heads, one layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import numpy as np
import torch

from m3fast.checkpoint.config import ModelConfig, Pooling
from m3fast.checkpoint.weights import Layer, Linear, Norm, SparseHead, Weights
from m3fast.kernels import gelu, residual
from m3fast.kernels.linear import few_rows, linear
from m3fast.model import encoder, heads
from m3fast.runner.base import HeadOptions, Outputs
from m3fast.runner.gpu import GpuRunner
from m3fast.types import Selection, TokenIds

WIDTH, HEADS, INNER, LONGEST, VOCAB = 1024, 16, 4096, 8192, 64


def _no_product(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *,
    gelu: bool = False, out: torch.Tensor | None = None, early: bool = False,
) -> torch.Tensor:  # fmt: skip
    """`linear` without torch's arithmetic."""
    if early and few_rows("linear", x, weight, bias, out):
        return linear(x, weight, bias, gelu=gelu, out=out, early=True)
    return x.new_zeros(len(x), len(weight)) if out is None else out


def _no_mean(x: torch.Tensor, reduce: str, *, lengths: torch.Tensor, unsafe: bool) -> torch.Tensor:
    """`torch.segment_reduce` without its arithmetic."""
    return x.new_zeros(len(lengths), x.shape[1])


@contextmanager
def runner(pooling: Pooling, dtype: torch.dtype) -> Iterator[GpuRunner]:
    """One in which no product or mean is computed, as no kernel computes anything."""

    def linear(rows: int, columns: int) -> Linear:
        return Linear(torch.zeros(rows, columns, dtype=dtype), torch.zeros(rows, dtype=dtype))

    norm = Norm(*torch.zeros(2, WIDTH, dtype=dtype))
    layer = Layer(
        linear(3 * WIDTH, WIDTH), linear(WIDTH, WIDTH), norm,
        linear(INNER, WIDTH), linear(WIDTH, INNER), norm,
    )  # fmt: skip
    word, position = (torch.zeros(n, WIDTH, dtype=dtype) for n in (VOCAB, LONGEST + 2))
    sparse = SparseHead(torch.zeros(1, WIDTH, dtype=dtype), torch.zeros(1, dtype=dtype))
    weights = Weights(
        word, position, word[0], norm, (layer,), linear(WIDTH, WIDTH), sparse
    )  # fmt: skip
    config = ModelConfig(
        "xlm-roberta", WIDTH, 1, HEADS, INNER, VOCAB, LONGEST + 2, 1, 1e-5, 1, pooling
    )  # fmt: skip
    with ExitStack() as stack:
        for module in (encoder, gelu, heads, residual):
            stack.enter_context(mock.patch.object(module, "linear", _no_product))
        stack.enter_context(mock.patch.object(torch, "segment_reduce", _no_mean))
        yield GpuRunner(config, weights, torch.device("cpu"))


def options(pooling: Pooling) -> HeadOptions:
    return HeadOptions(pooling, normalize=True, truncate_dim=None, dropped=(0, 1, 2, 3))


def texts(lengths: np.ndarray) -> list[Selection]:
    """Texts of these lengths, all of them id 4."""
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = TokenIds(np.full(ends[-1], 4, np.int32), ends, np.zeros(len(lengths), np.bool_))
    return [Selection(tokens, np.arange(len(lengths)))]


def batches(rng: np.random.Generator, count: int) -> Iterator[np.ndarray]:
    """Lengths of random batches: of a bucket's size and of a larger one, short texts and long."""
    for _ in range(count):
        longest = int(rng.choice([8, 32, 64, 128, 600, LONGEST]))
        lengths = rng.integers(1, longest + 1, int(rng.integers(1, 300)))
        kept = np.cumsum(lengths) <= 9000
        yield lengths[kept] if kept.any() else lengths[:1]


ALL = Outputs(dense=True, sparse=True, colbert=True)
