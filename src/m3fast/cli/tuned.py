"""What `m3fast tune` times: for each kernel the shapes of BGE-M3, its configs, and a launch.

The key of a case is the one that the kernel looks its config up by.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from m3fast.kernels import triton_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

HALVES = (torch.bfloat16, torch.float16)


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
        launch: runs one config; its result must not depend on which.
    """

    op: str
    key: Mapping[str, str | int]
    configs: Sequence[Any]
    launch: Callable[[Any], torch.Tensor]


def attention(device: torch.device, sizes: Sizes) -> Iterator[Case]:
    from m3fast.kernels._triton.attention import candidates, launch_attention
    from m3fast.kernels.attention import attention_class, attention_tiles

    for dtype in HALVES:
        for dim in (64, 32, 128):
            for length in (20, 50, 100, 512):
                longest = attention_class(length)
                heads, count = sizes.hidden // dim, max(sizes.tokens // length, 1)
                # Lengths around the middle of the class, the same for every config.
                lengths = np.random.default_rng(0).integers(length * 3 // 4, length + 1, count)
                ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
                texts = torch.from_numpy(np.repeat(np.arange(count, dtype=np.int32), lengths))
                texts = texts.to(device)
                qkv = torch.randn(len(texts), 3, heads, dim, device=device).to(dtype)
                out = qkv.new_empty(len(texts), heads * dim)

                @functools.cache
                def tiles(short: int, rows: int, ends: Any = ends) -> torch.Tensor:
                    return torch.from_numpy(attention_tiles(ends, short, rows)).to(device)

                def launch(
                    config: Any, qkv: Any = qkv, tiles: Any = tiles, texts: Any = texts,
                    out: torch.Tensor = out,
                ) -> torch.Tensor:  # fmt: skip
                    its = tiles(config.short, config.rows)
                    launch_attention(qkv, its, texts, qkv.shape[-1] ** -0.5, out, config)
                    return out

                key = {"dtype": str(dtype), "dim": str(dim), "longest": longest}
                configs = candidates(triton_path.arch(device), dtype, dim, longest)
                yield Case("attention", key, configs, launch)


def layernorm(device: torch.device, sizes: Sizes) -> Iterator[Case]:
    from m3fast.kernels._triton.layernorm import candidates, default_config, launch_add_layernorm

    arch, width = triton_path.arch(device), sizes.hidden
    for many, tokens in ((1, sizes.tokens), (0, sizes.few)):
        x, residual = (torch.randn(tokens, width, device=device).to(HALVES[0]) for _ in range(2))
        bias, weight, shift = (torch.randn(width, device=device).to(HALVES[0]) for _ in range(3))
        out = torch.empty_like(x)

        def launch(
            config: Any, x: torch.Tensor = x, residual: torch.Tensor = residual,
            bias: torch.Tensor = bias, weight: torch.Tensor = weight, shift: torch.Tensor = shift,
            out: torch.Tensor = out,
        ) -> torch.Tensor:  # fmt: skip
            launch_add_layernorm(x, residual, bias, weight, shift, 1e-5, out, config=config)
            return out

        default = default_config(arch, width, bool(many))
        configs = _first(default, candidates(arch, width))
        yield Case("layernorm", {"width": width, "many": many}, configs, launch)


def gelu(device: torch.device, sizes: Sizes) -> Iterator[Case]:
    from m3fast.kernels._triton.gelu import candidates, default_config, launch_bias_gelu

    arch, width = triton_path.arch(device), sizes.ffn
    x = torch.randn(sizes.tokens, width, device=device).to(HALVES[0])
    bias = torch.zeros(width, dtype=x.dtype, device=device)

    def launch(config: Any) -> torch.Tensor:
        launch_bias_gelu(x, bias, config)
        return x[:0]  # in place: each call works on the last one's result

    configs = _first(default_config(arch, width), candidates(arch, width))
    yield Case("gelu", {"width": width}, configs, launch)


def maxsim(device: torch.device, sizes: Sizes) -> Iterator[Case]:
    from m3fast.kernels._triton.maxsim import launch_maxsim, launch_maxsim_pairs
    from m3fast.kernels._triton.maxsim_config import candidates
    from m3fast.kernels.maxsim import quantize_vectors

    arch, dim = triton_path.arch(device), sizes.hidden
    lengths = np.random.default_rng(0).integers(150, 451, sizes.documents)
    if sizes.documents < 10:
        lengths = lengths // 100
    ends = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)])).to(device)
    random = torch.randn(int(ends[-1]), dim, device=device)
    for dtype in (torch.float16, torch.bfloat16, torch.int8):
        docs, scales = random.to(dtype), None
        if dtype == torch.int8:
            docs, scales = quantize_vectors(random)
        for tokens in sizes.queries:
            queries = torch.randn(tokens, dim, device=device)
            queries = queries.to(torch.bfloat16 if dtype == torch.int8 else dtype)
            starts = torch.arange(0, tokens + 1, min(32, tokens), device=device)
            key = {"dtype": str(dtype), "dim": dim, "tokens": tokens, "rows": len(docs)}

            def launch(
                config: Any, queries: torch.Tensor = queries, starts: torch.Tensor = starts,
                docs: torch.Tensor = docs, scales: Any = scales,
            ) -> torch.Tensor:  # fmt: skip
                return launch_maxsim(queries, starts, docs, ends, scales, config)

            tma = arch // 10 in (9, 10)
            yield Case("maxsim", key, candidates(arch, tokens, dtype, tma), launch)
        queries = torch.randn(sizes.queries[0], dim, device=device)
        queries = queries.to(torch.bfloat16 if dtype == torch.int8 else dtype)
        starts = torch.tensor([0, len(queries)], device=device)
        pairs = torch.arange(sizes.documents, device=device)
        pairs = torch.stack([torch.zeros_like(pairs), pairs.flip(0)], 1)

        def launch_pairs(
            config: Any, queries: torch.Tensor = queries, starts: torch.Tensor = starts,
            docs: torch.Tensor = docs, scales: Any = scales, pairs: torch.Tensor = pairs,
        ) -> torch.Tensor:  # fmt: skip
            return launch_maxsim_pairs(
                queries, starts, docs, ends, pairs, len(queries), scales, config
            )

        key = {"dtype": str(dtype), "dim": dim, "tokens": len(queries), "rows": len(docs)}
        configs = candidates(arch, len(queries), dtype, False)
        yield Case("maxsim_pairs", key, configs, launch_pairs)


def sparse(device: torch.device, sizes: Sizes) -> Iterator[Case]:
    from m3fast.kernels._triton.sparse import candidates, default_config, launch_sparse_csr

    random = np.random.default_rng(0)
    lengths = random.gamma(3, 60, max(sizes.tokens // 180, 1)).clip(5, 512).astype(int)
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

    arch = triton_path.arch(device)
    yield Case("sparse_csr", {}, _first(default_config(arch), candidates(arch)), launch)


def _first(default: Any, configs: Sequence[Any]) -> list[Any]:
    return [default, *(c for c in configs if c != default)]


CASES: dict[str, Callable[[torch.device, Sizes], Iterator[Case]]] = {
    "attention": attention,
    "layernorm": layernorm,
    "gelu": gelu,
    "maxsim": maxsim,
    "sparse": sparse,
}
