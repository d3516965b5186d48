"""The peers' graphs in eight bits, made from the very ONNX files that they run in fp32.

- ONNX Runtime: `quantize_dynamic` of every MatMul but the one to token weights, which has one
  column: weights int8 with a scale per channel, activations uint8 with a scale per tensor, taken in
  every call. Its products of uint8 and int8 are the ones with instructions of their own (AMX,
  VNNI); with uint8 weights a call took four times as long. Without VNNI they are made of sums of 16
  bits that saturate, so weights have 7 bits there, as its documentation advises (`reduce_range`).
- OpenVINO: `nncf.quantize` for transformers, its defaults: weights per channel, activations by
  scales from calibration, SmoothQuant, bias correction. Or `nncf.compress_weights`: weights alone.

Files lie beside the fp32 graph, made once: of 24 layers nncf needs some minutes. onnxruntime,
openvino and nncf are imported where used.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from bench.core.workloads import ragged_lengths, texts

VERSION = 1  # of the graphs written here
VNNI = ("avx512_vnni", "avx_vnni", "amx_int8")
SPARSE_COLUMNS = 1


def onnx_runtime(graph: Path) -> Path:
    """The graph quantised for ONNX Runtime."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    reduced = not has_vnni()
    file = graph.with_name(f"{graph.stem}-int8{'-reduced' * reduced}-q{VERSION}.onnx")
    if file.exists():
        return file
    with _aside(file) as made, _quiet():
        quantize_dynamic(
            graph,
            made / file.name,
            op_types_to_quantize=["MatMul"],
            nodes_to_exclude=_narrow(graph),
            per_channel=True,
            reduce_range=reduced,
            weight_type=QuantType.QInt8,
            use_external_data_format=True,
            # Its inference of types ends at ONNX Runtime's own operators; all of ours are floats.
            extra_options={"DefaultTensorType": 1},
        )
    return file


def openvino(graph: Path, samples: Sequence[dict[str, Any]]) -> Path:
    """The graph quantised for OpenVINO, activations by what these inputs give."""
    import nncf

    def made(model: Any) -> Any:
        return nncf.quantize(
            model,
            nncf.Dataset(samples),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(samples),
        )

    return _openvino(graph, "int8", made)


def openvino_weights(graph: Path) -> Path:
    """The graph with its weights alone in int8."""
    import nncf

    mode = nncf.CompressWeightsMode.INT8_SYM
    return _openvino(graph, "weights", lambda model: nncf.compress_weights(model, mode=mode))


def calibration_texts() -> list[str]:
    """Like those of the rows in length and kind, and none of them."""
    return texts(ragged_lengths(32), 1000)


@cache
def has_vnni() -> bool:
    """Whether this CPU sums four products of eight bits without saturating."""
    info = Path("/proc/cpuinfo")
    flags = re.search(r"^flags\s*:(.*)$", info.read_text(), re.M) if info.exists() else None
    return bool(flags and set(VNNI) & set(flags[1].split()))


def _openvino(graph: Path, kind: str, quantise: Any) -> Path:
    import openvino

    file = graph.with_name(f"{graph.stem}-{kind}-q{VERSION}.xml")
    if not file.exists():
        with _aside(file) as made, _quiet():
            model = quantise(openvino.Core().read_model(graph))
            openvino.save_model(model, made / file.name, compress_to_fp16=False)
    return file


def _narrow(graph: Path) -> list[str]:
    """Products with one column: token weights."""
    import onnx

    its = onnx.load(graph, load_external_data=False).graph
    thin = {w.name for w in its.initializer if len(w.dims) == 2 and w.dims[1] == SPARSE_COLUMNS}
    return [node.name for node in its.node if node.op_type == "MatMul" and thin & {*node.input}]


@contextlib.contextmanager
def _aside(file: Path) -> Iterator[Path]:
    """A folder to write into. What is in it is then moved beside `file`, which comes last."""
    made = Path(tempfile.mkdtemp(dir=file.parent))
    try:
        yield made
        for part in sorted(made.iterdir(), key=lambda part: part.name == file.name):
            part.replace(file.parent / part.name)
    finally:
        shutil.rmtree(made)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without lines and bars of progress."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(None):
            yield
    finally:
        logging.disable(before)
