"""A checkpoint in eight bits, made of one in floats, and back: what `m3fast quantize` writes.

    config.json         model_type "m3fast-int8"; m3fast_model_type has the layout's own
    model.safetensors   linear layers and the tables of words and positions: X.weight int8 [N, K],
                        X.weight_scale float32 [N]; layers that eight bits do not hold, in 16 bits
                        where they were; the rest float32; Hugging Face's names
    the others          tokenizer, heads, sentence-transformers' files and folders: copies

Back, config.json and model.safetensors are the hub's: each weight is its bytes times their scales.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import torch

from m3fast._version import __version__
from m3fast.checkpoint.config import BASE, INT8_TYPE, QUANTIZATION, ModelConfig, in_floats
from m3fast.checkpoint.files import read_any, read_json
from m3fast.checkpoint.folder import HUB_FILES, resolve
from m3fast.checkpoint.listing import MODULES
from m3fast.checkpoint.sentence import Sentence
from m3fast.checkpoint.tensors import SCALE, open_tensors
from m3fast.checkpoint.weights import listed
from m3fast.errors import CheckpointError, InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from m3fast.checkpoint.tensors import Tensors

WEIGHTS = "model.safetensors"
COPIED = (*HUB_FILES, "README*", "LICENSE*", "NOTICE*")
CPU = torch.device("cpu")
# Safetensors' names.
KINDS = {torch.int8: "I8", torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}
Shapes: TypeAlias = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Quantized:
    """What was written.

    Attributes:
        folder: the new checkpoint.
        before, after: bytes of the encoder's weight files there and here.
        seconds: it took.
    """

    folder: Path
    before: int
    after: int
    seconds: float


def quantize(
    model: str | Path, output: str | Path, cache_dir: str | Path | None = None
) -> Quantized:
    """Write a model's checkpoint in int8, one tensor at a time.

    The folder is there whole or not at all: it is made under another name beside it.

    Args:
        model: `m3fast-tiny`, a local folder, or a hub id such as `BAAI/bge-m3`.
        output: folder to make; an empty one may be there.
        cache_dir: hub cache; None for the usual one.

    Raises:
        CheckpointError: the model is missing, broken, or in int8 already.
        InputError: there is something at `output`, no folder to make it in, or no room.
        OSError: it cannot be written.
    """
    return _make(model, output, torch.int8, cache_dir)


def dequantize(
    model: str | Path, output: str | Path, dtype: torch.dtype, cache_dir: str | Path | None = None
) -> Quantized:
    """Write an int8 checkpoint in floats as the hub has them, for libraries that read no other.

    The weights stay those that int8 rounded. Heads keep the dtype they have. The folder is there
    whole or not at all.

    Args:
        model, output, cache_dir: as `quantize` takes them; the model is in int8.
        dtype: torch.float16 or torch.float32.

    Raises:
        CheckpointError: the model is missing, broken, in floats already, or too large for float16.
        InputError: another dtype, something at `output`, no folder to make it in, or no room.
        OSError: it cannot be written.
    """
    if dtype not in (torch.float16, torch.float32):
        raise InputError(f"dtype: expected torch.float16 or torch.float32, found {dtype}")
    return _make(model, output, dtype, cache_dir)


def _make(
    model: str | Path, output: str | Path, dtype: torch.dtype, cache_dir: str | Path | None
) -> Quantized:
    start, out = time.perf_counter(), Path(os.path.realpath(Path(output).expanduser()))
    _check_output(out)
    path = resolve(model, cache_dir)
    sentence, config = Sentence.from_dir(path), ModelConfig.from_dir(path)
    if config.int8 == (dtype == torch.int8):
        found = INT8_TYPE if config.int8 else config.model_type
        raise CheckpointError(
            f"{sentence.encoder / 'config.json'}: model_type: expected "
            f"{'floats' if config.int8 else repr(INT8_TYPE)}, found {found!r}"
        )
    files = [file for file in _copies(path, sentence) if file != sentence.encoder / "config.json"]
    with ExitStack() as stack:
        plan = _plan(config, dtype, open_tensors(sentence.encoder, stack))
    header, size = _header(plan)
    need = len(header) + size + sum(file.stat().st_size for file in files)
    if (free := shutil.disk_usage(out.parent).free) < need:
        raise InputError(
            f"output: expected room for {need:,} bytes in {str(out.parent)!r}, found {free:,}"
        )
    making = out.with_name(f"{out.name}.{os.getpid()}.tmp")
    making.mkdir()
    try:
        for file in files:
            there = making / file.relative_to(path)
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, there)
        encoder = making / sentence.encoder.relative_to(path)
        encoder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            before = _write(sentence.encoder, encoder / WEIGHTS, header, plan, stack)
        raw = _raw_config(read_json(sentence.encoder / "config.json"), config, dtype)
        (encoder / "config.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
        making.replace(out)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise
    return Quantized(out, before, len(header) + size, time.perf_counter() - start)


def _raw_config(raw: dict[str, Any], config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    if dtype != torch.int8:
        return in_floats(raw, dtype)
    raw |= {"model_type": INT8_TYPE, BASE: config.model_type}
    # Without a quant_method: transformers warns of one it does not know and goes on.
    raw[QUANTIZATION] = {"format": INT8_TYPE, "bits": 8, "m3fast": __version__}
    return raw


def _check_output(out: Path) -> None:
    if not out.parent.is_dir():
        raise InputError(f"output: expected an existing folder, found {str(out.parent)!r}")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"output: expected a new or an empty folder, found {str(out)!r}")


def _copies(path: Path, sentence: Sentence) -> list[Path]:
    """Files that go along as they are."""
    modules = [path / "1_Pooling"]
    if (path / MODULES).is_file():
        modules = [path / entry["path"] for entry in read_any(path / MODULES)]  # checked before
    folders = {path, sentence.encoder}
    found = _matching(folders, COPIED)
    found |= _matching(set(modules) - folders, (*COPIED, WEIGHTS, "pytorch_model.bin"))
    return sorted(file for file in found if not file.name.endswith(".index.json"))


def _matching(folders: Iterable[Path], patterns: Iterable[str]) -> set[Path]:
    found = (file for folder in folders for each in patterns for file in folder.glob(each))
    return {file for file in found if file.is_file()}


@dataclass(frozen=True, slots=True)
class _Plan:
    """What becomes floats, of which dtype, and what becomes bytes with float32 scales."""

    small: dict[str, tuple[torch.dtype, tuple[int, ...]]]
    large: Shapes


def _plan(config: ModelConfig, dtype: torch.dtype, tensors: Tensors) -> _Plan:
    """In int8 all tables become bytes, and linear layers that these hold.

    Those that they do not hold stay in 16 bits where they are, the other floats become float32.
    """
    floats, tables, linears = listed(config)
    if dtype != torch.int8:
        whole: Shapes = floats | tables
        for names in linears:
            whole |= names
        return _Plan({name: (dtype, shape) for name, shape in whole.items()}, {})
    small = {name: (torch.float32, shape) for name, shape in floats.items()}
    large: Shapes = {**tables}
    for names in linears:
        if all(tensors.linear(name, shape) is not None for name, shape in names.items()):
            large |= names
            continue
        for name, shape in names.items():
            found = tensors.dtype(name, shape)
            small[name] = (found if found.itemsize == 2 else torch.float32, shape)
    # The wide ones first: each tensor begins at a multiple of its own size.
    return _Plan(dict(sorted(small.items(), key=lambda item: -item[1][0].itemsize)), large)


def _header(plan: _Plan) -> tuple[bytes, int]:
    """(safetensors' header, bytes that follow it); the library itself writes only what it holds."""
    kinds = [(dtype, n, s) for n, (dtype, s) in plan.small.items()]
    kinds += [(torch.float32, n + SCALE, s[:1]) for n, s in plan.large.items()]
    kinds += [(torch.int8, n, s) for n, s in plan.large.items()]
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for dtype, name, shape in kinds:
        start, end = end, end + torch.Size(shape).numel() * dtype.itemsize
        entries[name] = {"dtype": KINDS[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, end


def _write(source: Path, file: Path, header: bytes, plan: _Plan, stack: ExitStack) -> int:
    """Write the tensors; bytes of the files they come from."""
    tensors = open_tensors(source, stack)
    with open(file, "wb") as out:
        out.write(header)
        for name, (dtype, shape) in plan.small.items():
            _put(out, tensors.take(name, shape, CPU, dtype))
        scales = out.tell()
        out.seek(4 * sum(shape[0] for shape in plan.large.values()), os.SEEK_CUR)
        made: list[torch.Tensor] = []
        for name, shape in plan.large.items():
            table = tensors.table(name, (shape[0], shape[1]))
            _put(out, table.data)
            made.append(table.scale)
        out.seek(scales)
        if made:
            _put(out, torch.cat(made))
        out.flush()
        os.fsync(out.fileno())
    return sum(each.stat().st_size for each in tensors.files)


def _put(out: IO[bytes], tensor: torch.Tensor) -> None:
    out.write(tensor.contiguous().view(torch.uint8).numpy().data)  # numpy knows no bfloat16
