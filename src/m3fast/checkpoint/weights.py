"""Files of a checkpoint -> weights of the packed encoder: checked, QKV fused, nothing spare.

Layouts: Hugging Face's XLM-RoBERTa, RoBERTa and BERT encoders, with BGE-M3's two head files beside
them (`colbert_linear.pt`, `sparse_linear.pt`) or without (dense-only models), and the modules that
sentence-transformers puts behind the pooling. The pooler and other training remnants are never
read.
"""

from __future__ import annotations

import math
import os
import pickle
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from m3fast.checkpoint.sentence import Sentence, read_json
from m3fast.errors import CheckpointError
from m3fast.kernels.linear import Weight, pack_weight

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from m3fast.checkpoint.config import ModelConfig
    from m3fast.checkpoint.sentence import Module

TINY = "m3fast-tiny"
WORD_EMBEDDINGS = "embeddings.word_embeddings.weight"
HEAD_FILES = ("colbert_linear.pt", "sparse_linear.pt")
# Everything but weights that loading may read; weights are fetched in a second step.
HUB_FILES = ("*.json", "*.txt", "*.model", *HEAD_FILES)


@dataclass(frozen=True, slots=True)
class Linear:
    """y = x @ weight.T + bias, with weight [out, in], perhaps packed, and bias [out]."""

    weight: Weight
    bias: torch.Tensor


@dataclass(frozen=True, slots=True)
class SparseHead:
    """weight [1, H] and bias [1] of the product that makes token weights."""

    weight: torch.Tensor
    bias: torch.Tensor


@dataclass(frozen=True, slots=True)
class Norm:
    """LayerNorm's weight [H] and bias [H]."""

    weight: torch.Tensor
    bias: torch.Tensor


@dataclass(frozen=True, slots=True)
class Layer:
    """One transformer layer: qkv [3H, H], out [H, H], up [F, H], down [H, F], two norms."""

    qkv: Linear
    out: Linear
    attention_norm: Norm
    up: Linear
    down: Linear
    output_norm: Norm


@dataclass(frozen=True, slots=True)
class Weights:
    """All that one forward pass reads, on one device, in one dtype.

    Attributes:
        word: [V, H]; position: [P, H]; type_row: [H], the row of token type 0.
        colbert: Linear [D, H], or None in a dense-only checkpoint.
        sparse: its head, or None in a dense-only checkpoint.
        modules: float32, from the pooled vector to the dense one, in order.
    """

    word: torch.Tensor
    position: torch.Tensor
    type_row: torch.Tensor
    embedding_norm: Norm
    layers: tuple[Layer, ...]
    colbert: Linear | None
    sparse: SparseHead | None
    modules: tuple[nn.Module, ...] = ()

    @property
    def dense_size(self) -> int:
        """Width of the dense vector."""
        sizes = [m.linear.out_features for m in self.modules if isinstance(m, Dense)]
        return sizes[-1] if sizes else self.word.shape[1]


class Dense(nn.Module):
    """sentence-transformers' module of that name: activation(W x + b), perhaps + x or R x."""

    def __init__(
        self, linear: nn.Linear, activation: nn.Module, residual: nn.Module | None
    ) -> None:
        super().__init__()
        self.linear, self.activation, self.residual = linear, activation, residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.activation(self.linear(x))
        return y if self.residual is None else y + self.residual(x)


class Normalize(nn.Module):
    """L2 normalisation between two other modules."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(x, dim=-1)


def resolve(model: str | Path, cache_dir: str | Path | None = None) -> Path:
    """Absolute folder of a checkpoint: `m3fast-tiny`, a local path, or a Hugging Face hub id.

    Raises:
        CheckpointError: no such folder, and not a hub id that can be fetched or is in the cache.
    """
    if str(model) == TINY:
        return Path(__file__).absolute().parent / "data" / TINY
    path = Path(model).expanduser()
    if path.is_dir() and str(model):  # Path("") would be the current folder
        return Path(os.path.abspath(path))  # what is read later is not another folder's
    if path.exists():
        raise CheckpointError(f"model: expected a folder, found the file {str(model)!r}")
    if not _is_hub_id(model):
        raise CheckpointError(
            f"model: expected {TINY!r}, a folder or a hub id such as 'BAAI/bge-m3', "
            f"found {str(model)!r}, which is none of them"
        )
    return _fetch(str(model), cache_dir)


def again(path: str | Path, model: str) -> str:
    """What to load once more: the folder read before, or the name where that is not there."""
    return str(path) if Path(path).is_dir() else model


def _is_hub_id(model: str | Path) -> bool:
    parts = str(model).split("/")
    return (
        isinstance(model, str)
        and len(parts) == 2
        and all(part and not part.startswith((".", "~")) for part in parts)
    )


def _fetch(hub_id: str, cache_dir: str | Path | None) -> Path:
    # Imported here: it costs 0.3 s, and a local path never needs it.
    from huggingface_hub import snapshot_download

    def get(*patterns: str) -> Path:
        return Path(snapshot_download(hub_id, cache_dir=cache_dir, allow_patterns=list(patterns)))

    try:
        path = get(*HUB_FILES, "model*.safetensors")
        if not any(path.glob("model*.safetensors")):
            path = get("pytorch_model.bin")
            if not (path / "pytorch_model.bin").exists():
                path = get("pytorch_model-*.bin")  # their index is there already
        sentence = Sentence.from_dir(path)
        folders = {sentence.encoder, *(module.folder for module in sentence.modules)} - {path}
        if folders:
            path = get(*(f"{folder.relative_to(path)}/*" for folder in folders))
    except (OSError, ValueError) as error:  # huggingface_hub's errors derive from these two
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"model: {hub_id!r} could not be fetched: {reason}") from error
    return path.absolute()


def load_weights(
    path: Path,
    config: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    colbert_dim: int = -1,
    *,
    pack: bool = False,
) -> Weights:
    """Load, check and fuse the weights in a checkpoint's folder.

    Args:
        path: folder with model.safetensors or pytorch_model.bin, whole or sharded.
        config: its shape.
        device: where the weights go.
        dtype: floating dtype the weights are converted to.
        colbert_dim: rows expected in colbert_linear.pt; -1 takes what the file has.
        pack: bring the weights of linear layers into the order that the CPU's kernel reads, one
            by one, so that no second copy of the model is ever held.

    Raises:
        CheckpointError: a file or tensor is missing, unreadable, of another shape or type, or holds
            what is not finite in this dtype.
    """
    heads = [path / name for name in HEAD_FILES]
    missing = [file for file in heads if not file.exists()]
    if len(missing) == 1:
        raise CheckpointError(f"{missing[0]}: expected both head files or neither, found no file")
    colbert, sparse = None, None
    if not missing:
        rows = None if colbert_dim <= 0 else colbert_dim
        weight, bias = _load_head(heads[0], rows, config.hidden_size, device, dtype)
        colbert = _linear(weight, bias, pack)
        sparse = SparseHead(*_load_head(heads[1], 1, config.hidden_size, device, dtype))
    sentence = Sentence.from_dir(path)
    modules = _load_modules(sentence.modules, config.hidden_size, device)
    with ExitStack() as stack:
        tensors = _open_tensors(sentence.encoder, stack)

        def take(name: str, *shape: int) -> torch.Tensor:
            return tensors.take(name, shape, device, dtype)

        weights = _fuse(config, take, colbert, sparse, pack)
        return replace(weights, modules=modules)


def _load_modules(
    listed: tuple[Module, ...], size: int, device: torch.device
) -> tuple[nn.Module, ...]:
    """The modules behind the pooling, whose vectors are `size` wide at first."""
    found: list[nn.Module] = []
    for module in listed:
        if module.kind == "Normalize":
            found.append(Normalize())
            continue
        with ExitStack() as stack, torch.device("meta"):
            tensors = _open_tensors(module.folder, stack)

            def fill(
                part: nn.Module, name: str, *shape: int, tensors: _Tensors = tensors
            ) -> nn.Module:
                taken = {"weight": tensors.take(f"{name}.weight", shape, device, torch.float32)}
                if getattr(part, "bias", None) is not None:
                    bias = tensors.take(f"{name}.bias", shape[:1], device, torch.float32)
                    taken["bias"] = bias
                part.load_state_dict(taken, assign=True)
                return part.requires_grad_(requires_grad=False)

            if module.kind == "LayerNorm":
                found.append(fill(nn.LayerNorm(size), "norm", size))
                continue
            out, residual = module.size or size, None
            linear = nn.Linear(size, out, bias=module.bias)
            fill(linear, "linear", out, size)
            if module.residual:
                residual = nn.Identity()
                if out != size:
                    residual = fill(nn.Linear(size, out, bias=False), "residual", out, size)
            found.append(Dense(linear, getattr(nn, module.activation)(), residual))
            size = out
    return tuple(module.eval() for module in found)


def _fuse(
    c: ModelConfig,
    take: Callable[..., torch.Tensor],
    colbert: Linear | None,
    sparse: SparseHead | None,
    pack: bool,
) -> Weights:
    h, f = c.hidden_size, c.ffn_size

    def norm(name: str) -> Norm:
        return Norm(take(f"{name}.weight", h), take(f"{name}.bias", h))

    def linear(rows: int, cols: int, *names: str) -> Linear:
        """One layer, or several of the same input as one."""
        weights = [take(f"{name}.weight", rows, cols) for name in names]
        biases = [take(f"{name}.bias", rows) for name in names]
        if len(names) == 1:
            weight, bias = weights[0], biases[0]
        else:
            weight, bias = torch.cat(weights), torch.cat(biases)
        return _linear(weight, bias, pack)

    def layer(i: int) -> Layer:
        base = f"encoder.layer.{i}"
        qkv = [f"{base}.attention.self.{part}" for part in ("query", "key", "value")]
        return Layer(
            qkv=linear(h, h, *qkv),
            out=linear(h, h, f"{base}.attention.output.dense"),
            attention_norm=norm(f"{base}.attention.output.LayerNorm"),
            up=linear(f, h, f"{base}.intermediate.dense"),
            down=linear(h, f, f"{base}.output.dense"),
            output_norm=norm(f"{base}.output.LayerNorm"),
        )

    return Weights(
        word=take(WORD_EMBEDDINGS, c.vocab_size, h),
        position=take("embeddings.position_embeddings.weight", c.n_positions, h),
        type_row=take("embeddings.token_type_embeddings.weight", c.n_types, h)[0].clone(),
        embedding_norm=norm("embeddings.LayerNorm"),
        layers=tuple(layer(i) for i in range(c.n_layers)),
        colbert=colbert,
        sparse=sparse,
    )


def _linear(weight: torch.Tensor, bias: torch.Tensor, pack: bool) -> Linear:
    return Linear(pack_weight(weight) if pack else weight, bias)


class _Tensors:
    """Tensors by Hugging Face name, whatever file and prefix they stand under."""

    def __init__(self, where: Mapping[str, tuple[Path, Callable[[], Any]]], source: Path) -> None:
        ends = [name for name in where if name.endswith(WORD_EMBEDDINGS)]
        self._where, self._source = where, source
        self._prefix = ends[0].removesuffix(WORD_EMBEDDINGS) if ends else ""

    def take(
        self, name: str, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
    ) -> torch.Tensor:
        file, get = self._where.get(self._prefix + name, (self._source, None))
        if get is None:
            raise CheckpointError(f"{file}: {name}: expected shape {shape}, found no such tensor")
        return _moved(_check(get(), file, name, shape), file, name, device, dtype)


def _moved(
    tensor: torch.Tensor, file: Path, name: str, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """The tensor there and in that dtype, or CheckpointError where it is not finite."""
    moved = tensor.to(device, dtype)
    low, high = (float(v) for v in moved.aminmax()) if moved.numel() else (0.0, 0.0)
    if not (math.isfinite(low) and math.isfinite(high)):
        beyond = "" if dtype == tensor.dtype else f" in {str(dtype).removeprefix('torch.')}"
        found = next(v for v in (low, high) if not math.isfinite(v))
        raise CheckpointError(f"{file}: {name}: expected finite values{beyond}, found {found}")
    return moved


def _check(tensor: Any, file: Path, name: str, shape: tuple[int | None, ...]) -> torch.Tensor:
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
    if not tensor.is_floating_point():
        raise CheckpointError(f"{file}: {name}: expected a float type, found {tensor.dtype}")
    return tensor


def _load_head(
    file: Path, rows: int | None, cols: int, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    state = _load_pickle(file)
    weight = _check(state.get("weight"), file, "weight", (rows, cols))
    bias = _check(state.get("bias"), file, "bias", (weight.shape[0],))
    return (
        _moved(weight, file, "weight", device, dtype),
        _moved(bias, file, "bias", device, dtype),
    )


def _open_tensors(path: Path, stack: ExitStack) -> _Tensors:
    """From the first of these that is there, as transformers picks it."""
    single, file = path / "model.safetensors", path / "pytorch_model.bin"
    if single.exists():
        return _safetensors([single], stack)
    if (index := path / f"{single.name}.index.json").exists():
        return _safetensors(_shards(index), stack)
    index = path / f"{file.name}.index.json"
    if not file.exists() and not index.exists():
        raise CheckpointError(f"{path}: expected {single.name} or {file.name}, found neither")
    where: dict[str, tuple[Path, Callable[[], Any]]] = {}
    for each in [file] if file.exists() else _shards(index):
        state = _load_pickle(each)
        where |= {name: (each, partial(state.__getitem__, name)) for name in state}
    return _Tensors(where, file if file.exists() else index)


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(read_json(index)["weight_map"].values()))
        return [index.with_name(name) for name in names]
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{index}: expected a weight_map, found {error!r}") from error


class _SafeFile(Protocol):
    def keys(self) -> list[str]: ...
    def get_tensor(self, name: str) -> torch.Tensor: ...


def _safetensors(files: list[Path], stack: ExitStack) -> _Tensors:
    from safetensors import SafetensorError, safe_open

    where: dict[str, tuple[Path, Callable[[], Any]]] = {}
    for file in files:
        try:
            handle: _SafeFile = stack.enter_context(safe_open(file, framework="pt"))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{file}: expected a safetensors file, found {error}") from error
        for name in handle.keys():  # noqa: SIM118 - not a mapping
            where[name] = (file, lambda handle=handle, name=name: handle.get_tensor(name))
    return _Tensors(where, files[0])


def _load_pickle(file: Path) -> Mapping[str, Any]:
    """A state dict through torch's restricted unpickler: no code in the file is run."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"{file}: expected a state dict, found {reason[0]}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{file}: expected a state dict, found {type(state).__name__}")
    return state
