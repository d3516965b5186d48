"""modules.json: where encoder and pooling are, and which modules follow the pooling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from m3fast.checkpoint.files import optional_json, read_any, read_json
from m3fast.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

MODULES = "modules.json"
# Elementwise and without settings, of torch.nn.modules.activation.
ACTIVATIONS = (
    *("ELU", "GELU", "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyReLU", "LogSigmoid", "Mish"),
    *("ReLU", "ReLU6", "SELU", "SiLU", "Sigmoid", "Softplus", "Softsign", "Tanh", "Identity"),
)


@dataclass(frozen=True, slots=True)
class Module:
    """One step from the pooled vector to the embedding.

    Attributes:
        folder: where its weights are.
        size: width of what comes out; None where it stays.
        activation: of Dense, a class name of torch.nn; bias, residual: as its settings say.
    """

    kind: Literal["Dense", "LayerNorm", "Normalize"]
    folder: Path
    size: int | None = None
    activation: str = "Identity"
    bias: bool = True
    residual: bool = False


def read_modules(path: Path, notes: list[str]) -> tuple[Path, Path, tuple[Module, ...], bool]:
    """(folder of the encoder, of the pooling, what follows, whether the last is Normalize)."""
    file = path / MODULES
    raw = read_any(file)
    listed: list[tuple[str, Path]] = []
    entries: list[Any] = raw if isinstance(raw, list) else [raw]
    for i, entry in enumerate(entries):
        try:
            package, *_, kind = entry["type"].split(".")
            # Another package's module of a known name is not that module.
            kind = kind if package == "sentence_transformers" else entry["type"]
            listed.append((kind, path / entry["path"]))
        except (TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{file}: [{i}]: expected a type and a path") from error
        if not (path / entry["path"]).resolve().is_relative_to(path.resolve()):
            raise CheckpointError(f"{file}: [{i}]: expected a path inside the folder")
    kinds = [kind for kind, _ in listed]
    if kinds[:2] != ["Transformer", "Pooling"]:
        raise CheckpointError(f"{file}: expected Transformer and Pooling first, found {kinds[:2]}")
    found: list[Module] = []
    for kind, folder in listed[2:]:
        if kind == "Dense":
            found.append(_dense(folder))
        elif kind == "LayerNorm":
            found.append(Module(kind, folder))
        elif kind == "Normalize":
            _check_flow(folder / "config.json", needed=False)
            found.append(Module(kind, folder))
        elif kind == "Dropout":
            notes.append(f"{file}: Dropout is left out: it changes nothing outside training")
        else:
            raise CheckpointError(
                f"{file}: {folder.name}: expected Dense, LayerNorm, Normalize or Dropout after "
                f"the pooling, found {kind!r}"
            )
    normal = bool(found) and found[-1].kind == "Normalize"
    return listed[0][1], listed[1][1], tuple(found[:-1] if normal else found), normal


def _dense(folder: Path) -> Module:
    file = folder / "config.json"
    raw = _check_flow(file, needed=True)
    sizes = [raw.get(key) for key in ("in_features", "out_features")]
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise CheckpointError(f"{file}: in_features, out_features: expected sizes, found {sizes}")
    name = raw.get("activation_function", "torch.nn.modules.activation.Tanh")
    place, _, activation = str(name).rpartition(".")
    if not place.startswith("torch.nn") or activation not in ACTIVATIONS:
        raise CheckpointError(
            f"{file}: activation_function: expected torch.nn's {', '.join(ACTIVATIONS)}, "
            f"found {name!r}"
        )
    bias, residual = raw.get("bias", True) is True, raw.get("use_residual", False) is True
    return Module("Dense", folder, sizes[1], activation, bias, residual)


def _check_flow(file: Path, *, needed: bool) -> dict[str, Any]:
    """A module's settings, if it reads and writes the sentence's vector."""
    raw = read_json(file) if needed else optional_json(file)
    for key in ("module_input_name", "module_output_name"):
        if (found := raw.get(key)) not in (None, "sentence_embedding"):
            raise CheckpointError(f"{file}: {key}: expected 'sentence_embedding', found {found!r}")
    return raw
