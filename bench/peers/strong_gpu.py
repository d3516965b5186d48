"""The strong baseline on a GPU: the packed encoder out of torch's best parts, and nothing of ours.

Packed tokens, torch's varlen_attn, each layer through torch.compile, the whole in one CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F

from bench.core import gputime
from bench.core.measure import Candidate, wall
from bench.peers import ops
from m3fast.checkpoint.config import ModelConfig
from m3fast.checkpoint.weights import Weights

Vectors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Attend = Callable[[torch.Tensor], torch.Tensor]  # [T, 3, H, D] -> [T, H·D]


def encode(
    config: ModelConfig, weights: Weights, ids: torch.Tensor, positions: torch.Tensor,
    first: torch.Tensor, attend: Attend, layer: Callable[..., torch.Tensor],
) -> Vectors:  # fmt: skip
    """dense [N, H], token weights [T] (no rows made of them), colbert [T, D]; all of them fp32."""
    x = weights.word[ids] + weights.position[positions] + weights.type_row
    x = _norm(x, weights.embedding_norm, config.layer_norm_eps)
    for its in weights.layers:
        x = layer(x, its, attend, config)
    assert weights.sparse is not None and weights.colbert is not None
    dense = F.normalize(x[first].float(), dim=-1)
    sparse = torch.relu(F.linear(x, weights.sparse.weight, weights.sparse.bias)).float().squeeze(-1)
    colbert = F.linear(x, weights.colbert.weight, weights.colbert.bias).float()
    return dense, sparse, F.normalize(colbert, dim=-1)


def plain_layer(x: torch.Tensor, its: Any, attend: Attend, config: ModelConfig) -> torch.Tensor:
    eps = config.layer_norm_eps
    qkv = F.linear(x, its.qkv.weight, its.qkv.bias)
    attended = attend(qkv.view(len(x), 3, config.n_heads, config.head_dim))
    attended = F.linear(attended, its.out.weight, its.out.bias)
    x = _norm(attended + x, its.attention_norm, eps)
    inner = F.gelu(F.linear(x, its.up.weight, its.up.bias))
    return _norm(F.linear(inner, its.down.weight, its.down.bias) + x, its.output_norm, eps)


def _norm(x: torch.Tensor, norm: Any, eps: float) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, eps)


def compiled(
    config: ModelConfig, weights: Weights, batch: Any, device: torch.device
) -> Callable[[Any], Vectors]:
    """A candidate for batches of the lengths of `batch`, with ids, positions, ends, longest."""
    ops.cuda_only(device)
    varlen = ops.varlen_attn(device)
    ids, positions = batch.ids.clone(), batch.positions.clone()
    first = batch.ends[:-1].long()
    # Every layer has the same shapes: one compilation serves all of them.
    half = compiled_linear()
    rest = torch.compile(after_attention, dynamic=False)

    class Texts:
        ends, longest = batch.ends, batch.longest
        qkv: torch.Tensor

    def attend(qkv: torch.Tensor) -> torch.Tensor:
        Texts.qkv = qkv
        return varlen(Texts)

    def layer(x: torch.Tensor, its: Any, attend: Attend, config: ModelConfig) -> torch.Tensor:
        qkv = half(x, its.qkv.weight, its.qkv.bias)
        attended = attend(qkv.view(len(x), 3, config.n_heads, config.head_dim))
        return rest(x, attended, *layer_tensors(its), config.layer_norm_eps)

    with torch.inference_mode():
        torch.cuda.synchronize()
        aside = torch.cuda.Stream(device)
        with torch.cuda.stream(aside):
            for _ in range(2):
                encode(config, weights, ids, positions, first, attend, layer)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = encode(config, weights, ids, positions, first, attend, layer)

    def run(x: Any, reads: tuple[Any, ...] = (first, Texts, weights)) -> Vectors:
        ids.copy_(x.ids)
        positions.copy_(x.positions)
        graph.replay()  # reads what `reads` keeps where it is
        return found

    return run


def layer_tensors(its: Any) -> list[torch.Tensor]:
    """What `after_attention` takes, in its order."""
    parts = (its.out, its.attention_norm, its.up, its.down, its.output_norm)
    return [tensor for part in parts for tensor in (part.weight, part.bias)]


def after_attention(
    x: torch.Tensor, attended: torch.Tensor,
    out: torch.Tensor, out_bias: torch.Tensor, norm: torch.Tensor, norm_bias: torch.Tensor,
    up: torch.Tensor, up_bias: torch.Tensor, down: torch.Tensor, down_bias: torch.Tensor,
    norm_2: torch.Tensor, norm_2_bias: torch.Tensor, eps: float,
) -> torch.Tensor:  # fmt: skip
    x = F.layer_norm(F.linear(attended, out, out_bias) + x, x.shape[-1:], norm, norm_bias, eps)
    inner = F.linear(F.gelu(F.linear(x, up, up_bias)), down, down_bias)
    return F.layer_norm(inner + x, x.shape[-1:], norm_2, norm_2_bias, eps)


def compiled_linear() -> Callable[..., torch.Tensor]:
    return torch.compile(F.linear, dynamic=False)


def products(
    multiply: Callable[..., Any], weights: Sequence[torch.Tensor], tokens: int
) -> Candidate:
    """x W^T for each weight [N, K] in turn, x [tokens, K], by `torch.mm` or a function like it.

    torch.mm writes into kept buffers; what else is given takes (x, W, bias).
    """
    like = weights[0]
    x = {k: like.new_empty(tokens, k).normal_() for k in {w.shape[1] for w in weights}}
    out = {n: like.new_empty(tokens, n) for n in {len(w) for w in weights}}
    bias = {n: like.new_empty(n).normal_() for n in out}

    def run(_: Any) -> None:
        with torch.inference_mode():
            for weight in weights:
                n, k = weight.shape
                if multiply is torch.mm:
                    torch.mm(x[k], weight.t(), out=out[n])
                else:
                    multiply(x[k], weight, bias[n])

    return run


def gemm_share(
    weights: Weights, tokens: int, device: torch.device, ahead: float,
    multiply: Callable[..., Any] | None = None, rounds: int = 10,
) -> float:  # fmt: skip
    """Rate of the compiled products as a share of torch.mm's, which the gemm suite measures.

    Both go through the same weights of all layers at the same size, in turn. Shapes are each held
    against their own rate: the best of the four is not within reach of the other three.
    """
    layers = ((its.qkv, its.out, its.up, its.down) for its in weights.layers)
    of_layers = [part.weight for parts in layers for part in parts]
    watch = gputime.Events(device, ahead) if device.type == "cuda" else wall
    bare = products(torch.mm, of_layers, tokens)
    compiled = products(multiply or compiled_linear(), of_layers, tokens)
    seconds: tuple[list[float], list[float]] = ([], [])
    for run in (bare, compiled):
        run(None)
    for _ in range(rounds):
        for run, its in zip((bare, compiled), seconds, strict=True):
            stop = watch()
            run(None)
            its.append(stop())
    return median(seconds[0]) / median(seconds[1])
