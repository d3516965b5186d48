"""The strong baseline on a CPU: the same packed encoder out of torch's best parts, none of ours.

- Products: torch or oneDNN with packed weights, bias and GELU within, whichever is faster. Under
  torch.compile Inductor would pack float32 weights for MKL only, which is slower on AMD.
- Attention: SDPA over groups of texts, sorted: of equal length, or padded where that is faster.
- LayerNorm with its residual, and the heads: torch.compile, or eager where that is faster.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from bench import measure, onnxgraph
from bench.peers import KEYS, OUTPUTS, Encoded, lexical, rows_of

Product = Callable[[torch.Tensor], torch.Tensor]
WIDTHS = (1, 16, 64)  # texts whose lengths differ by less are one group of attention


def add_norm(
    y: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> torch.Tensor:
    return F.layer_norm(y + x, x.shape[-1:], weight, bias, eps)


def unit(x: torch.Tensor) -> torch.Tensor:
    return F.normalize(x.float(), dim=-1)


def weigh(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """relu(x · w + b) float32 [T]"""
    return torch.relu((x.float() * weight.float()).sum(-1) + bias.float())


@cache
def compiled() -> tuple[dict[str, Callable[..., Any]], str]:
    """The elementwise parts under torch.compile, and "", or eager ones and the reason."""
    eager = {"add_norm": add_norm, "unit": unit, "weigh": weigh}
    fast = {name: torch.compile(part, dynamic=True) for name, part in eager.items()}
    x, row = torch.randn(24, 64), torch.randn(64)
    try:
        with torch.inference_mode():
            fast["add_norm"](x, x, row, row, 1e-5)
    except Exception as error:  # no compiler, or one that Inductor cannot use
        return eager, f"eager, since torch.compile fails: {type(error).__name__}"
    return fast, ""


def note() -> str:
    """What the baseline is, for a row."""
    return "; ".join(filter(None, ["the strong baseline is bench/strong_cpu.py", compiled()[1]]))


class StrongCpu:
    """An encoder as in bench.peers.

    Args:
        sample: texts to choose the ways of products and attention by; none in a smoke test.
    """

    def __init__(
        self, path: Path, dtype: torch.dtype, sample: Sequence[str] = (),
        outputs: Sequence[str] = OUTPUTS,
    ) -> None:  # fmt: skip
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        self._heads: int = config["num_attention_heads"]
        self._eps: float = config["layer_norm_eps"]
        self._outputs, self._dtype = outputs, dtype
        self._tokenise = rows_of(path)
        self._sample = self._tokenise(list(sample)) if sample else []
        self._rows = min(sum(map(len, self._sample)), 4096) or 64
        self._ways: dict[Any, str] = {}
        self._width = WIDTHS[1]
        self._parts = compiled()[0]
        with torch.inference_mode():
            self._load({k: v.to(dtype) for k, v in onnxgraph.load_state(path).items()})
            if self._sample:
                self._choose()

    def __call__(self, texts: str | list[str]) -> Encoded:
        if isinstance(texts, str):
            return {key: rows[0] for key, rows in self([texts]).items()}
        rows = self._tokenise(texts)
        with torch.inference_mode():
            return self._encode(rows)

    def gemm_rate(self, tokens: int, seconds: float = 0.5) -> float:
        """Operations per second of one layer's four products, biases and GELU within them."""
        made = self._layers[0][:4]
        work = sum(2.0 * tokens * n * k for n, k in self._sizes)
        best, end = float("inf"), time.perf_counter() + seconds
        with torch.inference_mode():
            inputs = [torch.randn(tokens, k).to(self._dtype) for _, k in self._sizes]
            while time.perf_counter() < end or best == float("inf"):
                start = time.perf_counter()
                for product, x in zip(made, inputs, strict=True):
                    product(x)
                best = min(best, time.perf_counter() - start)
        return work / best

    def _load(self, state: dict[str, torch.Tensor]) -> None:
        row = state["embeddings.token_type_embeddings.weight"][0]
        self._word = state["embeddings.word_embeddings.weight"] + row
        self._position = state["embeddings.position_embeddings.weight"]
        self._norm = _pair(state, "embeddings.LayerNorm")
        self._layers, self._sizes = [], []
        while (layer := f"encoder.layer.{len(self._layers)}") + ".output.dense.weight" in state:
            parts = [f"{layer}.attention.self.{n}" for n in ("query", "key", "value")]
            qkv = [torch.cat([state[f"{p}.{kind}"] for p in parts]) for kind in ("weight", "bias")]
            out, up, down = (
                _pair(state, f"{layer}.{name}.dense")
                for name in ("attention.output", "intermediate", "output")
            )
            pairs = [(qkv, "none"), (out, "none"), (up, "gelu"), (down, "none")]
            self._sizes = [tuple(weight.shape) for (weight, _), _ in pairs]
            norms = [_pair(state, f"{layer}.{n}.LayerNorm") for n in ("attention.output", "output")]
            self._layers.append([*(self._product(*pair, act) for pair, act in pairs), *norms])
        self._sparse = state["sparse_linear.weight"][0], state["sparse_linear.bias"]
        self._colbert = self._product(*_pair(state, "colbert_linear"), "none")

    def _product(self, weight: torch.Tensor, bias: torch.Tensor, act: str) -> Product:
        """x -> act(x W^T + b) the fastest way, which products of one size share."""
        ways: dict[str, Callable[[], Product]] = {"torch": partial(_torch, weight, bias, act)}
        if torch.backends.mkldnn.is_available():
            ways["oneDNN"] = partial(_onednn, weight, bias, act, self._rows)
        key = (*weight.shape, act)
        if key not in self._ways:
            if self._sample and len(ways) > 1:
                x = torch.randn(self._rows, weight.shape[1]).to(weight.dtype)
                made = {name: make() for name, make in ways.items()}
                self._ways[key] = measure.fastest(made, x, x)
            else:
                self._ways[key] = next(reversed(ways))
        return ways[self._ways[key]]()

    def _choose(self) -> None:
        """The width of attention's groups, then compiled or eager elementwise parts."""

        def with_width(rows: list[list[int]], width: int) -> None:
            self._width = width
            self._encode(rows)

        def with_parts(rows: list[list[int]], parts: dict[str, Callable[..., Any]]) -> None:
            self._parts = parts
            self._encode(rows)

        if len(self._sample) > 1:
            widths = {str(n): partial(with_width, width=n) for n in WIDTHS}
            self._width = int(measure.fastest(widths, self._sample, self._sample))
        eager = {"add_norm": add_norm, "unit": unit, "weigh": weigh}
        parts = {"eager": eager, "compiled": compiled()[0]}
        runs = {name: partial(with_parts, parts=its) for name, its in parts.items()}
        self._parts = parts[measure.fastest(runs, self._sample, self._sample)]

    def _encode(self, rows: list[list[int]]) -> Encoded:
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        lengths = [len(rows[i]) for i in order]
        ids = torch.tensor([t for i in order for t in rows[i]])
        positions = torch.cat([torch.arange(2, n + 2) for n in lengths])
        x = self._word[ids]
        x = self._parts["add_norm"](x, self._position[positions], *self._norm, self._eps)
        groups = _groups(lengths, self._width, self._dtype)
        for qkv, out, up, down, norm, norm_2 in self._layers:
            attended = self._attend(qkv(x), groups)
            x = self._parts["add_norm"](out(attended), x, *norm, self._eps)
            x = self._parts["add_norm"](down(up(x)), x, *norm_2, self._eps)
        starts = np.cumsum([0, *lengths])
        found: Encoded = {}
        back = np.argsort(order)
        if "dense" in self._outputs:
            firsts = torch.from_numpy(starts[:-1][back])
            found[KEYS["dense"]] = self._parts["unit"](x[firsts]).numpy()
        if "sparse" in self._outputs:
            weights = self._parts["weigh"](x, *self._sparse).numpy()
            found[KEYS["sparse"]] = [
                lexical(rows[order[j]], weights[starts[j] : starts[j + 1]]) for j in back
            ]
        if "colbert" in self._outputs:
            vectors = self._parts["unit"](self._colbert(x)).numpy()
            found[KEYS["colbert"]] = [vectors[starts[j] + 1 : starts[j + 1]] for j in back]
        return found

    def _attend(self, qkv: torch.Tensor, groups: list[tuple[Any, ...]]) -> torch.Tensor:
        hidden = qkv.shape[1] // 3
        attended = qkv.new_empty(len(qkv), hidden)
        for start, end, count, longest, index, mask in groups:
            rows = qkv[start:end]
            if index is not None:
                rows = rows[index]
            q, k, v = rows.view(count, longest, 3, self._heads, -1).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            mixed = mixed.transpose(1, 2).reshape(count * longest, hidden)
            if index is None:
                attended[start:end] = mixed
            else:
                attended[start:end] = mixed[mask.view(-1) == 0]
        return attended


def _groups(lengths: list[int], width: int, dtype: torch.dtype) -> list[tuple[Any, ...]]:
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


def _pair(state: dict[str, torch.Tensor], name: str) -> tuple[torch.Tensor, torch.Tensor]:
    return state[f"{name}.weight"], state[f"{name}.bias"]


def _torch(weight: torch.Tensor, bias: torch.Tensor, act: str) -> Product:
    if act == "gelu":
        return lambda x: F.gelu(F.linear(x, weight, bias))
    return lambda x: F.linear(x, weight, bias)


def _onednn(weight: torch.Tensor, bias: torch.Tensor, act: str, rows: int) -> Product:
    ops = torch.ops.mkldnn
    packed = ops._reorder_linear_weight(weight.contiguous(), rows)
    exact = "none" if act == "gelu" else ""  # by erf
    return lambda x: ops._linear_pointwise(x, packed, bias, act, [], exact)
