"""A checkpoint as an ONNX file, for ONNX Runtime and OpenVINO.

Inputs: ids int64 [B, S], mask float32 [B, S], 1 for tokens and 0 for padding on the right.
Outputs: dense [B, H], token weights [B, S], token vectors [B, S - 1, D], as in reference heads.

Q, K and V are one MatMul. With `fused`, attention and residual LayerNorm are ONNX Runtime's own
operators (its optimiser makes BiasGelu itself); else all are plain ones, for OpenVINO, which fuses
attention as fast by itself. A graph has the outputs asked for and no nodes but theirs.
onnx is imported where it is used: the rows of a GPU do without.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from bench.core.workloads import CACHE, OUTPUTS

VERSION = 3  # of the graphs that `export` writes


class _Graph:
    """Nodes and weights under construction; every method returns the name of its result."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self._domain = dict.fromkeys(
            ("MultiHeadAttention", "SkipLayerNormalization"), "com.microsoft"
        )

    def const(self, value: Any, dtype: type = np.float32) -> str:
        from onnx import numpy_helper

        name = f"c{len(self.weights)}"
        # Not ascontiguousarray: it makes a scalar one-dimensional.
        array = np.array(value, dtype=dtype, order="C")
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def op(self, kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        from onnx import helper

        name = out or f"n{len(self.nodes)}"
        node = helper.make_node(
            kind, inputs, [name], name, domain=self._domain.get(kind, ""), **attributes
        )
        self.nodes.append(node)
        return name

    def linear(self, x: str, weight: Any, bias: Any) -> str:
        return self.op("Add", self.op("MatMul", x, self.const(weight.T)), self.const(bias))

    def norm(self, x: str, weight: Any, bias: Any, eps: float) -> str:
        return self.op("LayerNormalization", x, self.const(weight), self.const(bias), epsilon=eps)


def export(path: Path, fused: bool, outputs: Sequence[str] = OUTPUTS) -> Path:
    """Write model-*.onnx, once, and return its path.

    It lies beside a random checkpoint, or, with its weights, in the cache beside those.
    """
    from onnx import TensorProto, helper, save_model

    folder = path if path.parent == CACHE else CACHE / f"onnx-{path.name}-{_digest(path)}"
    kind = "-".join(["fused" if fused else "plain", *(outputs if outputs != OUTPUTS else ())])
    file = folder / f"model-{kind}-v{VERSION}.onnx"
    if file.exists():
        return file
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((path / "config.json").read_text())
    state = {k: v.float().numpy() for k, v in load_state(path).items()}
    graph = _build(config, state, fused, outputs)
    axes = {"dense": ["B", "H"], "sparse": ["B", "S"], "colbert": ["B", "R", "D"]}
    made = helper.make_graph(
        graph.nodes,
        "bge-m3",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["B", "S"]),
            helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["B", "S"]),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, axes[name]) for name in outputs],
        graph.weights,
    )
    domains = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(made, opset_imports=domains if fused else domains[:1], ir_version=10)
    half_made = file.with_suffix(".part")
    (folder / f"{file.stem}.data").unlink(missing_ok=True)  # a stopped run's would be added to
    # Weights beside the graph: protobuf ends at 2 GB.
    save_model(model, half_made, save_as_external_data=True, location=f"{file.stem}.data")
    half_made.rename(file)
    return file


def load_state(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of the encoder and of both heads by their names in the hub's files."""
    file = path / "model.safetensors"
    if file.exists():
        state = load_file(file)
    else:
        state = torch.load(path / "pytorch_model.bin", weights_only=True, mmap=True)
    for head in ("colbert_linear", "sparse_linear"):
        loaded = torch.load(path / f"{head}.pt", weights_only=True)
        state |= {f"{head}.{k}": v for k, v in loaded.items()}
    return state


def _digest(path: Path) -> str:
    """Of the folder's name and of when its files were written."""
    files = sorted((f.name, f.stat().st_mtime_ns) for f in path.iterdir() if f.is_file())
    return hashlib.sha256(f"{path.resolve()} {files}".encode()).hexdigest()[:8]


def _build(
    config: dict[str, Any], state: dict[str, np.ndarray], fused: bool, outputs: Sequence[str]
) -> _Graph:
    g = _Graph()
    heads, eps = config["num_attention_heads"], config["layer_norm_eps"]
    head_dim = config["hidden_size"] // heads

    def norm(x: str, name: str) -> str:
        return g.norm(x, state[f"{name}.weight"], state[f"{name}.bias"], eps)

    def linear(x: str, name: str) -> str:
        return g.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def residual(y: str, x: str, dense: str, name: str) -> str:
        """LN(dense(y) + x)"""
        if not fused:
            return norm(g.op("Add", linear(y, dense), x), name)
        parts = (state[f"{name}.weight"], state[f"{name}.bias"], state[f"{dense}.bias"])
        product = g.op("MatMul", y, g.const(state[f"{dense}.weight"].T))
        constants = [g.const(part) for part in parts]
        return g.op("SkipLayerNormalization", product, x, *constants, epsilon=eps)

    # Padding is on the right, so positions are 2, 3, 4, … and a padded one is never looked at.
    span = g.op("Shape", "ids", start=1, end=2)
    position = g.op(
        "Slice", g.const(state["embeddings.position_embeddings.weight"]), g.const([2], np.int64),
        g.op("Add", span, g.const([2], np.int64)), g.const([0], np.int64),
    )  # fmt: skip
    row = state["embeddings.token_type_embeddings.weight"][0]
    word = g.op("Gather", g.const(state["embeddings.word_embeddings.weight"] + row), "ids")
    x = norm(g.op("Add", word, position), "embeddings.LayerNorm")
    # [B, 1, 1, S]: a padded key's score falls by 1e9.
    bias = g.op("Mul", g.op("Sub", "mask", g.const(1.0)), g.const(1e9))
    bias = g.op("Unsqueeze", bias, g.const([1, 2], np.int64))
    if fused:  # MultiHeadAttention wants its rows spelt out: [B, 1, S, S]
        column = g.op("Unsqueeze", g.op("Mul", "mask", g.const(0.0)), g.const([1, 3], np.int64))
        bias = g.op("Add", bias, column)
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        parts = [f"{layer}.attention.self.{name}" for name in ("query", "key", "value")]
        qkv = g.linear(
            x,
            np.concatenate([state[f"{p}.weight"] for p in parts]),
            np.concatenate([state[f"{p}.bias"] for p in parts]),
        )
        attended = (_fused_attention if fused else _attention)(g, qkv, bias, heads, head_dim)
        out = f"{layer}.attention.output"
        x = residual(attended, x, f"{out}.dense", f"{out}.LayerNorm")
        inner = g.op("Gelu", linear(x, f"{layer}.intermediate.dense"))
        x = residual(inner, x, f"{layer}.output.dense", f"{layer}.output.LayerNorm")
    if "dense" in outputs:
        first = g.op("Gather", x, g.const(0, np.int64), axis=1)
        g.op("LpNormalization", first, axis=-1, p=2, out="dense")
    if "sparse" in outputs:
        weights = g.op("Relu", linear(x, "sparse_linear"))
        g.op("Squeeze", weights, g.const([2], np.int64), out="sparse")
    if "colbert" in outputs:
        rest = g.op(
            "Slice", x, g.const([1], np.int64), g.const([1 << 31], np.int64), g.const([1], np.int64)
        )
        g.op("LpNormalization", linear(rest, "colbert_linear"), axis=-1, p=2, out="colbert")
    return g


def _split(g: _Graph, qkv: str) -> list[str]:
    from onnx import helper

    names = [f"{qkv}_{part}" for part in "qkv"]
    g.nodes.append(helper.make_node("Split", [qkv], names, f"{qkv}_split", axis=2, num_outputs=3))
    return names


def _fused_attention(g: _Graph, qkv: str, bias: str, heads: int, head_dim: int) -> str:
    q, k, v = _split(g, qkv)
    # q, k, v, projection bias, key mask, attention bias
    return g.op("MultiHeadAttention", q, k, v, "", "", bias, num_heads=heads)


def _attention(g: _Graph, qkv: str, bias: str, heads: int, head_dim: int) -> str:
    apart = g.const([0, 0, heads, -1], np.int64)
    q, k, v = (g.op("Reshape", part, apart) for part in _split(g, qkv))
    q = g.op("Transpose", q, perm=[0, 2, 1, 3])
    k = g.op("Transpose", k, perm=[0, 2, 3, 1])
    v = g.op("Transpose", v, perm=[0, 2, 1, 3])
    scores = g.op("Mul", g.op("MatMul", q, k), g.const(head_dim**-0.5))
    mixed = g.op("MatMul", g.op("Softmax", g.op("Add", scores, bias), axis=-1), v)
    together = g.op("Transpose", mixed, perm=[0, 2, 1, 3])
    return g.op("Reshape", together, g.const([0, 0, -1], np.int64))
