"""The cases that `m3fast tune` times: for each kernel BGE-M3's shapes, its configs, a launch.

The key of a case is the one that the kernel looks its config up by.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from m3fast.kernels import dispatch

HALVES = (torch.bfloat16, torch.float16)
Launch = Callable[[Any], torch.Tensor]


@dataclass(frozen=True)
class Sizes:
    """How large the inputs are: enough to fill a GPU, or little enough to interpret."""

    tokens: int = 32768
    few: int = 512
    hidden: int = 1024
    ffn: int = 4096
    documents: int = 1000
    queries: tuple[int, ...] = (32, 64, 2048)


@dataclass(frozen=True)
class Case:
    """One row of the table to be.

    Attributes:
        configs: the default first.
        prepare: makes the inputs, and from them what runs one config; the result must not depend
            on which.
    """

    op: str
    key: Mapping[str, str | int]
    configs: Sequence[Any]
    prepare: Callable[[], Launch]


def attention(device: torch.device, sizes: Sizes) -> Iterator[Case]:
    from m3fast.kernels.attention import attention_class
    from m3fast.kernels.gpu.attention import candidates

    for dtype in HALVES:
        for dim in (64, 32, 128):
            for length in (20, 50, 100, 512):
                longest = attention_class(length)
                key = {"dtype": str(dtype), "dim": str(dim), "longest": longest}
                configs = candidates(dispatch.arch(device), dtype, dim, longest)
                prepare = partial(_attention, device, sizes, dtype, dim, length)
                yield Case("attention", key, configs, prepare)


def _attention(
    device: torch.device, sizes: Sizes, dtype: torch.dtype, dim: int, length: int
) -> Launch:
    from m3fast.kernels.attention import attention_tiles
    from m3fast.kernels.gpu.attention import launch_attention

    heads, count = sizes.hidden // dim, max(sizes.tokens // length, 1)
    # Lengths around the middle of the class, the same for every config.
    lengths = np.random.default_rng(0).integers(length * 3 // 4, length + 1, count)
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    texts = torch.from_numpy(np.repeat(np.arange(count, dtype=np.int32), lengths)).to(device)
    qkv = torch.randn(len(texts), 3, heads, dim, device=device).to(dtype)
    out = qkv.new_empty(len(texts), heads * dim)

    @functools.cache
    def tiles(short: int, rows: int) -> torch.Tensor:
        return torch.from_numpy(attention_tiles(ends, short, rows)).to(device)

    def launch(config: Any) -> torch.Tensor:
        launch_attention(qkv, tiles(config.short, config.rows), texts, dim**-0.5, out, config)
        return out

    return launch


def layernorm(device: torch.device, sizes: Sizes) -> Iterator[Case]:
    from m3fast.kernels.gpu.layernorm import candidates, default_config

    arch, width = dispatch.arch(device), sizes.hidden
    for many, tokens in ((1, sizes.tokens), (0, sizes.few)):
        default = default_config(arch, width, bool(many))
        configs = _first(default, candidates(arch, width))
        key = {"width": width, "many": many}
        yield Case("layernorm", key, configs, partial(_layernorm, device, width, tokens))


def _layernorm(device: torch.device, width: int, tokens: int) -> Launch:
    from m3fast.kernels.gpu.layernorm import launch_add_layernorm

    x, residual = (torch.randn(tokens, width, device=device).to(HALVES[0]) for _ in range(2))
    bias, weight, shift = (torch.randn(width, device=device).to(HALVES[0]) for _ in range(3))
    out = torch.empty_like(x)

    def launch(config: Any) -> torch.Tensor:
        launch_add_layernorm(x, residual, bias, weight, shift, 1e-5, out, config=config)
        return out

    return launch


def gelu(device: torch.device, sizes: Sizes) -> Iterator[Case]:
    from m3fast.kernels.gpu.gelu import candidates, default_config

    arch, width = dispatch.arch(device), sizes.ffn
    configs = _first(default_config(arch, width), candidates(arch, width))
    yield Case("gelu", {"width": width}, configs, partial(_gelu, device, sizes.tokens, width))


def _gelu(device: torch.device, tokens: int, width: int) -> Launch:
    from m3fast.kernels.gpu.gelu import launch_bias_gelu

    x = torch.randn(tokens, width, device=device).to(HALVES[0])
    bias = torch.zeros(width, dtype=x.dtype, device=device)

    def launch(config: Any) -> torch.Tensor:
        launch_bias_gelu(x, bias, config)
        return x[:0]  # in place: each call works on the last one's result

    return launch


def few_rows(device: torch.device, sizes: Sizes) -> Iterator[Case]:
    from m3fast.kernels.gpu.linear import candidates

    hidden, ffn = sizes.hidden, sizes.ffn
    for outs, depth, summed in (
        (3 * hidden, hidden, False), (hidden, hidden, True), (ffn, hidden, False),
        (hidden, ffn, True),
    ):  # fmt: skip
        key = {"outs": str(outs), "depth": str(depth), "summed": int(summed)}
        configs = candidates(outs, depth, summed)
        yield Case("linear", key, configs, partial(_few_rows, device, outs, depth, summed))


def _few_rows(device: torch.device, outs: int, depth: int, summed: bool) -> Launch:
    """A product for each of 24 layers, in a graph: no weights in a cache, launches that overlap."""
    from m3fast.kernels.gpu.layernorm import launch_add_layernorm
    from m3fast.kernels.gpu.linear import launch_linear, linear_parts

    cuda = device.type == "cuda"
    weights = torch.randn(24 if cuda else 1, outs, depth, device=device).to(HALVES[0])
    x = torch.randn(32, depth, device=device).to(HALVES[0])
    bias, out = x.new_ones(outs), x.new_zeros(len(x), outs)

    def run(config: Any) -> None:
        for weight in weights:
            if summed:
                parts = linear_parts(x, weight, config)
                launch_add_layernorm(parts, out, bias, bias, bias, 1.0, out, early=True)
            else:
                launch_linear(x, weight, bias, out, config=config)

    @functools.cache
    def graph(config: Any) -> torch.cuda.CUDAGraph:
        run(config)  # compiled
        made = torch.cuda.CUDAGraph()
        with torch.cuda.graph(made):
            run(config)
        return made

    def launch(config: Any) -> torch.Tensor:
        graph(config).replay() if cuda else run(config)
        return out

    return launch


def maxsim(device: torch.device, sizes: Sizes) -> Iterator[Case]:
    from m3fast.kernels.gpu.maxsim_config import candidates

    arch, dim = dispatch.arch(device), sizes.hidden
    lengths = np.random.default_rng(0).integers(150, 451, sizes.documents)
    if sizes.documents < 10:
        lengths = lengths // 100
    ends = np.concatenate([[0], np.cumsum(lengths)])
    for dtype in (torch.float16, torch.bfloat16, torch.int8):
        key = {"dtype": str(dtype), "dim": dim, "tokens": 0, "rows": int(ends[-1])}
        for tokens in sizes.queries:
            configs = candidates(arch, tokens, dtype, arch // 10 in (9, 10))
            prepare = partial(_maxsim, device, dim, ends, dtype, tokens)
            yield Case("maxsim", key | {"tokens": tokens}, configs, prepare)
        tokens = sizes.queries[0]
        configs = candidates(arch, tokens, dtype, False)
        prepare = partial(_maxsim_pairs, device, dim, ends, dtype, tokens)
        yield Case("maxsim_pairs", key | {"tokens": tokens}, configs, prepare)


@functools.lru_cache(maxsize=1)  # the cases of one dtype, one after the other
def _documents(
    device: torch.device, rows: int, dim: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor | None]:
    from m3fast.kernels.maxsim import quantize_vectors

    random = torch.randn(rows, dim, device=device)
    return quantize_vectors(random) if dtype == torch.int8 else (random.to(dtype), None)


def _queries(device: torch.device, tokens: int, dim: int, dtype: torch.dtype) -> torch.Tensor:
    random = torch.randn(tokens, dim, device=device)
    return random.to(torch.bfloat16 if dtype == torch.int8 else dtype)


def _maxsim(
    device: torch.device, dim: int, ends: np.ndarray, dtype: torch.dtype, tokens: int
) -> Launch:
    from m3fast.kernels.gpu.maxsim import launch_maxsim

    docs, scales = _documents(device, int(ends[-1]), dim, dtype)
    queries, on_device = _queries(device, tokens, dim, dtype), torch.from_numpy(ends).to(device)
    starts = torch.arange(0, tokens + 1, min(32, tokens), device=device)
    return lambda config: launch_maxsim(queries, starts, docs, on_device, scales, config)


def _maxsim_pairs(
    device: torch.device, dim: int, ends: np.ndarray, dtype: torch.dtype, tokens: int
) -> Launch:
    from m3fast.kernels.gpu.maxsim import launch_maxsim_pairs

    docs, scales = _documents(device, int(ends[-1]), dim, dtype)
    queries, on_device = _queries(device, tokens, dim, dtype), torch.from_numpy(ends).to(device)
    starts = torch.tensor([0, tokens], device=device)
    pairs = torch.arange(len(ends) - 1, device=device)
    pairs = torch.stack([torch.zeros_like(pairs), pairs.flip(0)], 1)
    return lambda config: launch_maxsim_pairs(
        queries, starts, docs, on_device, pairs, tokens, scales, config
    )


def sparse(device: torch.device, sizes: Sizes) -> Iterator[Case]:
    from m3fast.kernels.gpu.sparse import candidates, default_config

    arch = dispatch.arch(device)
    configs = _first(default_config(arch), candidates(arch))
    yield Case("sparse_csr", {}, configs, partial(_sparse, device, sizes.tokens))


def _sparse(device: torch.device, tokens: int) -> Launch:
    from m3fast.kernels.gpu.sparse import launch_sparse_csr

    random = np.random.default_rng(0)
    lengths = random.gamma(3, 60, max(tokens // 180, 1)).clip(5, 512).astype(int)
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    texts = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    # Half of a text's tokens repeat an id, as in real text.
    ids = (4 + 249998 * random.random(len(texts)) ** 8).astype(np.int32)
    weights = random.random(len(texts), dtype=np.float32) + 1e-3
    given = [torch.from_numpy(a).to(device) for a in (ids, weights, ends, texts)]
    out = torch.zeros(len(ends) + 2 * len(ids), dtype=torch.int32, device=device)

    def launch(config: Any) -> torch.Tensor:
        out.zero_()  # what follows the last entry is not written
        launch_sparse_csr(*given, (0, 1, 2, 3), False, out, config)  # pyright: ignore
        return out[: len(ends)]

    return launch


def _first(default: Any, configs: Sequence[Any]) -> list[Any]:
    return [default, *(c for c in configs if c != default)]


CASES: dict[str, Callable[[torch.device, Sizes], Iterator[Case]]] = {
    "attention": attention,
    "layernorm": layernorm,
    "gelu": gelu,
    "linear": few_rows,
    "maxsim": maxsim,
    "sparse": sparse,
}
