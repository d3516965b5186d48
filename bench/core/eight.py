"""The ways to a product of eight bits on a CPU, of values that are int8 already.

    y = x W^T,   x int8 [T, K], W int8 [N, K]; y int32, or those sums as fp32 or bf16

What quantises x and scales y is left out: these are limits. `dynamic` has both.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch

Product = Callable[[torch.Tensor], torch.Tensor]

INT_MM, ONEDNN, ORT = "torch._int_mm", "oneDNN, packed", "ONNX Runtime, MatMulInteger"


def products(x: torch.Tensor, weight: torch.Tensor) -> dict[str, Product]:
    """By name; those with packed weights hold them."""
    makers: dict[str, Callable[[], Product]] = {
        INT_MM: lambda: lambda x: torch._int_mm(x, weight.t()),
        ONEDNN: lambda: _onednn(x, weight, torch.float32),
        f"{ONEDNN}, bf16 out": lambda: _onednn(x, weight, torch.bfloat16),
        ORT: lambda: _onnx_runtime(x, weight),
    }
    return {name: makers[name]() for name in names()}


@cache
def names() -> list[str]:
    """Those that are here."""
    found = [INT_MM]
    if torch.backends.mkldnn.is_available():
        found += [ONEDNN, f"{ONEDNN}, bf16 out"]
    if all(importlib.util.find_spec(name) for name in ("onnxruntime", "onnx")):
        found.append(ORT)
    return found


def _onednn(x: torch.Tensor, weight: torch.Tensor, out: torch.dtype) -> Product:
    ops = torch.ops.onednn
    packed = ops.qlinear_prepack(weight, list(x.shape))
    scales, zeros = torch.ones(len(weight)), torch.zeros(len(weight), dtype=torch.int)
    return lambda x: ops.qlinear_pointwise(
        x, 1.0, 0, packed, scales, zeros, None, 1.0, 0, out, "none", [], ""
    )


def _onnx_runtime(x: torch.Tensor, weight: torch.Tensor) -> Product:
    """With x as uint8, which its kernels are made for, and a buffer that is kept for y."""
    made: list[Any] = []
    shifted = _unsigned(x)

    def run(given: torch.Tensor) -> torch.Tensor:
        if not made:  # of several ways most are never called
            made.append(_session(weight))
        out = np.empty((len(given), len(weight)), np.int32) if len(made) < 2 else made[1]
        if len(made) < 2 or len(out) != len(given):
            out = np.empty((len(given), len(weight)), np.int32)
            made[1:] = [out]
        bound = made[0].io_binding()
        bound.bind_cpu_input("x", shifted if given is x else _unsigned(given))
        bound.bind_output("y", "cpu", 0, np.int32, out.shape, out.ctypes.data)
        made[0].run_with_iobinding(bound)
        return torch.from_numpy(out)

    return run


def _unsigned(x: torch.Tensor) -> np.ndarray:
    return (x.short() + 128).to(torch.uint8).numpy()


def _session(weight: torch.Tensor) -> Any:
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    constants = [
        numpy_helper.from_array(weight.t().contiguous().numpy(), "w"),
        numpy_helper.from_array(np.array(128, np.uint8), "z"),
    ]
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w", "z"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["T", weight.shape[1]])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, ["T", len(weight)])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Its threads would spin on into the next candidate's turn.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def dynamic(weight: torch.Tensor) -> Product:
    """torch's own linear of eight bits: x fp32 in, y fp32 out, x quantised as a whole.

    Without VNNI to 7 bits: two products of 8 are more than the 16 bits that they are summed in.
    """
    reduced, packed = saturates(), _packed(weight)
    return lambda x: torch.ops.quantized.linear_dynamic(x, packed, reduced)


@cache
def saturates() -> bool:
    """Whether torch's products of eight bits by eight are wrong here, as without VNNI."""
    ones = torch.ones(1, 64)
    return bool(torch.ops.quantized.linear_dynamic(ones, _packed(ones), False) < 60)


def _packed(weight: torch.Tensor) -> Any:
    scales = weight.abs().amax(1) / 127
    before = torch.backends.quantized.engine
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is deprecated still runs
        try:
            torch.backends.quantized.engine = "onednn"  # the packed weight keeps it
            zeros = torch.zeros(len(weight), dtype=torch.long)
            quantised = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
            return torch.ops.quantized.linear_prepack(quantised, None)
        finally:
            torch.backends.quantized.engine = before


def quantise(x: torch.Tensor, top: int = 127) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 values and fp32 scales [rows, 1]: x is near values · scales, row by row."""
    scales = (x.abs().amax(1, keepdim=True) / top).clamp_min(1e-12)
    return (x / scales).round().to(torch.int8), scales
