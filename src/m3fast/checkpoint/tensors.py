"""Tensors in a checkpoint's files, checked one by one: safetensors or torch's, whole or sharded."""

from __future__ import annotations

import math
import pickle
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch

from m3fast.checkpoint.files import read_json
from m3fast.errors import CheckpointError
from m3fast.kernels.int8 import Int8Table, holds, quantize_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

WORD_EMBEDDINGS = "embeddings.word_embeddings.weight"
SCALE = "_scale"  # behind the name of a tensor in int8: the name of its scales
PIECE = 1 << 19  # numbers that are converted at a time: they stay in the caches


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file: `get` reads it, `alone` through a map of the file that ends with it."""

    file: Path
    get: Callable[[], Any]
    alone: Callable[[], Any]


class Tensors:
    """Tensors by Hugging Face name, whatever file and prefix they stand under.

    Attributes:
        files: where they stand.
    """

    def __init__(self, where: Mapping[str, Stored], source: Path) -> None:
        ends = [name for name in where if name.endswith(WORD_EMBEDDINGS)]
        self._where, self._source = where, source
        self._prefix = ends[0].removesuffix(WORD_EMBEDDINGS) if ends else ""
        self.files = sorted({stored.file for stored in where.values()})

    def take(
        self, name: str, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
    ) -> torch.Tensor:
        """A floating tensor; a matrix in int8 is multiplied by its scales."""
        file, found = self._get(name, shape)
        if found.dtype != torch.int8 or found.dim() != 2:
            return moved(floats(found, file, name), file, name, device, dtype)
        table = self._table(file, name, found)
        there = torch.empty(shape, dtype=dtype, device=device)
        for rows in _pieces(*found.shape):
            part = Int8Table(table.data[rows], table.scale[rows]).to(torch.float32)
            there[rows] = moved(part, file, name, device, dtype)
        return there

    def table(self, name: str, shape: tuple[int, int]) -> Int8Table:
        """A matrix in int8 on the CPU: mapped as it is in the file, or made of a floating one."""
        file, found = self._get(name, shape)
        if found.dtype == torch.int8:
            return self._table(file, name, found)
        return _quantized(file, name, found)

    def linear(self, name: str, shape: tuple[int, int]) -> Int8Table | None:
        """As `table`, of a weight that is copied anyway: the pages that were read go with it.

        None for a floating one that eight bits do not hold.
        """
        file, found = self._get(name, shape, alone=True)
        if found.dtype == torch.int8:
            return self._table(file, name, found)
        made = _quantized(file, name, found)
        return made if holds(made, found) else None

    def dtype(self, name: str, shape: tuple[int, ...]) -> torch.dtype:
        """That which it has in its file."""
        return self._get(name, shape)[1].dtype

    def _get(
        self, name: str, shape: tuple[int, ...], *, alone: bool = False
    ) -> tuple[Path, torch.Tensor]:
        stored = self._where.get(self._prefix + name)
        if stored is None:
            raise CheckpointError(
                f"{self._source}: {name}: expected shape {shape}, found no such tensor"
            )
        found = stored.alone() if alone else stored.get()
        return stored.file, shaped(found, stored.file, name, shape)

    def _table(self, file: Path, name: str, data: torch.Tensor) -> Int8Table:
        name = f"{name}{SCALE}"
        file, scale = self._get(name, (len(data),))
        if scale.dtype != torch.float32:
            raise CheckpointError(f"{file}: {name}: expected torch.float32, found {scale.dtype}")
        scale = moved(scale, file, name, torch.device("cpu"), torch.float32)
        if scale.numel() and float(scale.min()) < 0:
            raise CheckpointError(f"{file}: {name}: expected 0 or more, found {scale.min()}")
        return Int8Table(data, scale)


def _pieces(rows: int, cols: int) -> Iterator[slice]:
    """Rows of a matrix so many at a time that their floats are 2 MiB."""
    step = max(1, PIECE // max(cols, 1))
    return (slice(start, start + step) for start in range(0, rows, step))


def _quantized(file: Path, name: str, found: torch.Tensor) -> Int8Table:
    data, scale = torch.empty(found.shape, dtype=torch.int8), torch.empty(len(found))
    cpu = torch.device("cpu")
    for rows in _pieces(len(found), found.shape[1]):
        part = moved(floats(found[rows], file, name), file, name, cpu, torch.float32)
        made = quantize_table(part)
        data[rows], scale[rows] = made.data, made.scale
    return Int8Table(data, scale)


def moved(
    tensor: torch.Tensor, file: Path, name: str, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """The tensor there and in that dtype, or CheckpointError where it is not finite."""
    there = tensor.to(device, dtype)
    low, high = (float(v) for v in there.aminmax()) if there.numel() else (0.0, 0.0)
    if not (math.isfinite(low) and math.isfinite(high)):
        beyond = "" if dtype == tensor.dtype else f" in {str(dtype).removeprefix('torch.')}"
        found = next(v for v in (low, high) if not math.isfinite(v))
        raise CheckpointError(f"{file}: {name}: expected finite values{beyond}, found {found}")
    return there


def checked(tensor: Any, file: Path, name: str, shape: tuple[int | None, ...]) -> torch.Tensor:
    return floats(shaped(tensor, file, name, shape), file, name)


def floats(tensor: torch.Tensor, file: Path, name: str) -> torch.Tensor:
    if not tensor.is_floating_point():
        raise CheckpointError(f"{file}: {name}: expected a float type, found {tensor.dtype}")
    return tensor


def shaped(tensor: Any, file: Path, name: str, shape: tuple[int | None, ...]) -> torch.Tensor:
    if not isinstance(tensor, torch.Tensor):
        raise CheckpointError(f"{file}: {name}: expected a tensor, found {type(tensor).__name__}")
    fits = len(shape) == tensor.dim() and all(
        want in (None, have) for want, have in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        wanted = tuple("any" if n is None else n for n in shape)
        raise CheckpointError(
            f"{file}: {name}: expected shape {wanted}, found {tuple(tensor.shape)}"
        )
    return tensor


def open_tensors(path: Path, stack: ExitStack) -> Tensors:
    """From the first of these that is there, as transformers picks it."""
    single, file = path / "model.safetensors", path / "pytorch_model.bin"
    if single.exists():
        return _safetensors([single], stack)
    if (index := path / f"{single.name}.index.json").exists():
        return _safetensors(_shards(index), stack)
    index = path / f"{file.name}.index.json"
    if not file.exists() and not index.exists():
        raise CheckpointError(f"{path}: expected {single.name} or {file.name}, found neither")
    where: dict[str, Stored] = {}
    for each in [file] if file.exists() else _shards(index):
        state = load_pickle(each)
        gets = {name: partial(state.__getitem__, name) for name in state}
        where |= {name: Stored(each, get, get) for name, get in gets.items()}
    return Tensors(where, file if file.exists() else index)


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(read_json(index)["weight_map"].values()))
        return [index.with_name(name) for name in names]
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{index}: expected a weight_map, found {error!r}") from error


class _SafeFile(Protocol):
    def __enter__(self) -> Self: ...
    def __exit__(self, kind: Any, value: Any, trace: Any, /) -> None: ...
    def keys(self) -> list[str]: ...
    def get_tensor(self, name: str) -> torch.Tensor: ...


def _safetensors(files: list[Path], stack: ExitStack) -> Tensors:
    where: dict[str, Stored] = {}
    for file in files:
        handle = stack.enter_context(_opened(file))
        for name in handle.keys():  # noqa: SIM118 - not a mapping
            get = partial(handle.get_tensor, name)
            where[name] = Stored(file, get, partial(_alone, file, name))
    return Tensors(where, files[0])


def _opened(file: Path) -> _SafeFile:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: expected a safetensors file, found {error}") from error


def _alone(file: Path, name: str) -> torch.Tensor:
    with _opened(file) as handle:
        return handle.get_tensor(name)


def load_pickle(file: Path) -> Mapping[str, Any]:
    """A state dict through torch's restricted unpickler: no code in the file is run."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"{file}: expected a state dict, found {reason[0]}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{file}: expected a state dict, found {type(state).__name__}")
    return state
