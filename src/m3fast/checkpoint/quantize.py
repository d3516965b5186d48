"""A checkpoint in eight bits, made of one in floats: the folder that `m3fast quantize` writes.

    config.json         model_type "m3fast-int8"; m3fast_model_type has the layout's own
    model.safetensors   linear layers and the tables of words and positions: X.weight int8 [N, K],
                        X.weight_scale float32 [N]; the rest float32, and layers that eight bits do
                        not hold; Hugging Face's names
    the others          tokenizer, heads, sentence-transformers' files and folders: copies
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
from m3fast.checkpoint.config import BASE, INT8_TYPE, QUANTIZATION, ModelConfig
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
    start, out = time.perf_counter(), Path(os.path.realpath(Path(output).expanduser()))
    _check_output(out)
    path = resolve(model, cache_dir)
    sentence, config = Sentence.from_dir(path), ModelConfig.from_dir(path)
    if config.int8:
        file = sentence.encoder / "config.json"
        raise CheckpointError(f"{file}: model_type: expected floats, found {INT8_TYPE!r}")
    files = [file for file in _copies(path, sentence) if file != sentence.encoder / "config.json"]
    with ExitStack() as stack:
        kinds = _kinds(config, open_tensors(sentence.encoder, stack))
    header, size = _header(*kinds)
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
            before = _write(sentence.encoder, encoder / WEIGHTS, header, *kinds, stack)
        raw = read_json(sentence.encoder / "config.json")
        raw |= {"model_type": INT8_TYPE, BASE: config.model_type}
        # Without a quant_method: transformers warns of one it does not know and goes on.
        raw[QUANTIZATION] = {"format": INT8_TYPE, "bits": 8, "m3fast": __version__}
        (encoder / "config.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
        making.replace(out)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise
    return Quantized(out, before, len(header) + size, time.perf_counter() - start)


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


def _kinds(config: ModelConfig, tensors: Tensors) -> tuple[Shapes, Shapes]:
    """What becomes floats, and what becomes bytes: all but linear layers that these do not hold."""
    floats, tables, linears = listed(config)
    small: Shapes = {**floats}
    large: Shapes = {**tables}
    for names in linears:
        held = all(tensors.linear(name, shape) is not None for name, shape in names.items())
        (large if held else small).update(names)
    return small, large


def _header(small: Shapes, large: Shapes) -> tuple[bytes, int]:
    """(safetensors' header, bytes that follow it); the library itself writes only what it holds."""
    kinds = [("F32", n, s) for n, s in small.items()]
    kinds += [("F32", n + SCALE, s[:1]) for n, s in large.items()]
    kinds += [("I8", n, s) for n, s in large.items()]
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for dtype, name, shape in kinds:
        start, end = end, end + torch.Size(shape).numel() * (4 if dtype == "F32" else 1)
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, end


def _write(
    source: Path, file: Path, header: bytes, small: Shapes, large: Shapes, stack: ExitStack
) -> int:
    """Write the tensors; bytes of the files they come from."""
    tensors = open_tensors(source, stack)
    with open(file, "wb") as out:
        out.write(header)
        for name, shape in small.items():
            _put(out, tensors.take(name, shape, CPU, torch.float32))
        scales = out.tell()
        out.seek(4 * sum(shape[0] for shape in large.values()), os.SEEK_CUR)
        made: list[torch.Tensor] = []
        for name, shape in large.items():
            table = tensors.table(name, (shape[0], shape[1]))
            _put(out, table.data)
            made.append(table.scale)
        out.seek(scales)
        _put(out, torch.cat(made))
        out.flush()
        os.fsync(out.fileno())
    return sum(each.stat().st_size for each in tensors.files)


def _put(out: IO[bytes], tensor: torch.Tensor) -> None:
    out.write(tensor.contiguous().numpy().data)
