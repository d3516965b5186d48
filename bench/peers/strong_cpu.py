"""The strong baseline on a CPU: the same packed encoder out of torch's best parts, none of ours.

- Products: torch or oneDNN with packed weights, bias and GELU within, whichever is faster. Under
  torch.compile Inductor would pack float32 weights for MKL only, which is slower on AMD.
- Attention: SDPA over groups of texts, sorted: of equal length, or padded where that is faster.
- LayerNorm with its residual, and the heads: torch.compile, or eager where that is faster.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from bench.core import measure, roof
from bench.core.roof import Product
from bench.peers import onnxgraph
from bench.peers.encoders import OUTPUTS, lexical, rows_of
from bench.peers.encodings import KEYS, Encoded
from bench.peers.strong_parts import EAGER, compiled, groups_of

WIDTHS = (1, 16, 64)  # texts whose lengths differ by less are one group of attention
ACTIVATIONS = ("none", "none", "gelu", "none")  # after qkv, out, up, down
BUDGETS = (512, 1024, 4096)  # tokens per packed batch: what stays in caches, or larger products


def note() -> str:
    """What the baseline is, for a row."""
    words = "the strong baseline is bench/peers/strong_cpu.py"
    return "; ".join(filter(None, [words, compiled()[1]]))


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
        self._tokenize = rows_of(path)
        self._sample = self._tokenize(list(sample)) if sample else []
        self._rows = min(sum(map(len, self._sample)), BUDGETS[1]) or 64
        self._ways: dict[Any, str] = {}
        self._budget, self._width = BUDGETS[1], WIDTHS[1]
        self._parts = compiled()[0]
        with torch.inference_mode():
            self._load({k: v.to(dtype) for k, v in onnxgraph.load_state(path).items()})
            if self._sample:
                self._choose()

    def __call__(self, texts: str | list[str]) -> Encoded:
        if isinstance(texts, str):
            return {key: rows[0] for key, rows in self([texts]).items()}
        rows = self._tokenize(texts)
        with torch.inference_mode():
            return self._encode(rows)

    def gemm_share(self, tokens: int, rounds: int = 5) -> float:
        """Rate of its products as a share of the gemm suite's fastest at the same sizes.

        Both are timed in turn, without bias and GELU, on a batch's part of these tokens.
        """
        tokens = min(tokens, self._budget)
        seconds = [0.0, 0.0]
        with torch.inference_mode():
            for (n, k), act in zip(self._sizes, ACTIVATIONS, strict=True):
                x = torch.randn(tokens, k).to(self._dtype)
                weight = torch.randn(n, k).to(self._dtype)
                way = WAYS[self._ways[n, k, act]]
                ours = way(weight, None, "none", self._rows)
                ceiling = roof.products(x, weight).values()
                best = [float("inf")] * 2
                for _ in range(rounds):
                    best[0] = min(best[0], measure.timed(ours, x))
                    for run in ceiling:
                        best[1] = min(best[1], measure.timed(run, x))
                seconds = [total + this for total, this in zip(seconds, best, strict=True)]
        return seconds[1] / seconds[0]

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
            pairs = (qkv, out, up, down)
            self._sizes = [tuple(weight.shape) for weight, _ in pairs]
            norms = [_pair(state, f"{layer}.{n}.LayerNorm") for n in ("attention.output", "output")]
            products = [self._product(*p, act) for p, act in zip(pairs, ACTIVATIONS, strict=True)]
            self._layers.append([*products, *norms])
        self._sparse = state["sparse_linear.weight"][0], state["sparse_linear.bias"]
        self._colbert = self._product(*_pair(state, "colbert_linear"), "none")

    def _product(self, weight: torch.Tensor, bias: torch.Tensor, act: str) -> Product:
        """x -> act(x W^T + b) the fastest way, which products of one size share."""
        ways = WAYS if torch.backends.mkldnn.is_available() else {"torch": _torch}
        key = (*weight.shape, act)
        if key not in self._ways:
            if self._sample and len(ways) > 1:
                x = torch.randn(self._rows, weight.shape[1]).to(weight.dtype)
                made = {name: way(weight, bias, act, self._rows) for name, way in ways.items()}
                self._ways[key] = measure.fastest(made, x, x)
            else:
                self._ways[key] = next(reversed(ways))
        return ways[self._ways[key]](weight, bias, act, self._rows)

    def _choose(self) -> None:
        """Budget, width of attention's groups, compiled or eager elementwise parts."""

        def with_setting(rows: list[list[int]], name: str, value: Any) -> None:
            setattr(self, name, value)
            self._encode(rows)

        def try_out(name: str, values: dict[str, Any]) -> None:
            runs = {k: partial(with_setting, name=name, value=v) for k, v in values.items()}
            setattr(self, name, values[measure.fastest(runs, self._sample, self._sample)])

        if len(self._sample) > 1:
            try_out("_budget", {str(n): n for n in BUDGETS})
            try_out("_width", {str(n): n for n in WIDTHS})
        try_out("_parts", {"compiled": compiled()[0], "eager": EAGER})

    def _encode(self, rows: list[list[int]]) -> Encoded:
        """Batch by batch, long texts first."""
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        found: dict[str, list[Any]] = {KEYS[name]: [None] * len(rows) for name in self._outputs}
        start = 0
        while start < len(order):
            end, tokens = start + 1, len(rows[order[start]])
            while end < len(order) and tokens + len(rows[order[end]]) <= self._budget:
                tokens += len(rows[order[end]])
                end += 1
            chunk = order[start:end]
            for key, values in self._batch([rows[i] for i in chunk]).items():
                for i, value in zip(chunk, values, strict=True):
                    found[key][i] = value
            start = end
        if (key := KEYS["dense"]) in found:
            return found | {key: np.stack(found[key])}
        return found

    def _batch(self, rows: list[list[int]]) -> dict[str, Sequence[Any]]:
        """Outputs of texts sorted from long to short."""
        lengths = [len(its) for its in rows]
        ids = torch.tensor([t for its in rows for t in its])
        positions = torch.cat([torch.arange(2, n + 2) for n in lengths])
        x = self._word[ids]
        x = self._parts["add_norm"](x, self._position[positions], *self._norm, self._eps)
        groups = groups_of(lengths, self._width, self._dtype)
        for qkv, out, up, down, norm, norm_2 in self._layers:
            attended = self._attend(qkv(x), groups)
            x = self._parts["add_norm"](out(attended), x, *norm, self._eps)
            x = self._parts["add_norm"](down(up(x)), x, *norm_2, self._eps)
        ends = np.cumsum([0, *lengths]).tolist()
        spans = list(pairwise(ends))
        found: dict[str, Sequence[Any]] = {}
        if "dense" in self._outputs:
            found[KEYS["dense"]] = self._parts["unit"](x[ends[:-1]]).numpy()
        if "sparse" in self._outputs:
            weights = self._parts["weigh"](x, *self._sparse).numpy()
            weighed = zip(rows, spans, strict=True)
            found[KEYS["sparse"]] = [lexical(its, weights[a:b]) for its, (a, b) in weighed]
        if "colbert" in self._outputs:
            vectors = self._parts["unit"](self._colbert(x)).numpy()
            found[KEYS["colbert"]] = [vectors[a + 1 : b] for a, b in spans]
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


def _pair(state: dict[str, torch.Tensor], name: str) -> tuple[torch.Tensor, torch.Tensor]:
    return state[f"{name}.weight"], state[f"{name}.bias"]


def _torch(weight: torch.Tensor, bias: torch.Tensor | None, act: str, rows: int) -> Product:
    if act == "gelu":
        return lambda x: F.gelu(F.linear(x, weight, bias))
    return lambda x: F.linear(x, weight, bias)


def _onednn(weight: torch.Tensor, bias: torch.Tensor | None, act: str, rows: int) -> Product:
    ops = torch.ops.mkldnn
    packed = ops._reorder_linear_weight(weight.contiguous(), rows)
    exact = "none" if act == "gelu" else ""  # by erf
    return lambda x: ops._linear_pointwise(x, packed, bias, act, [], exact)


WAYS = {"torch": _torch, "oneDNN": _onednn}
