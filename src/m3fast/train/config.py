"""The TOML file of a training run: every choice, its default and its bounds."""

from __future__ import annotations

import math
import tomllib
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from m3fast.errors import InputError

# Names of the losses, in the order in which they are logged.
CONTRASTIVE = ("dense", "sparse", "colbert", "hybrid")
DISTILLED = ("distill_dense", "distill_sparse", "distill_colbert")
TEACHER = ("teacher_cosine", "teacher_kl")
LOSSES = (*CONTRASTIVE, *DISTILLED, *TEACHER)


@dataclass(frozen=True, slots=True)
class DataFile:
    """One `[[data]]` table.

    Attributes:
        path: JSON lines, see `m3fast.train.data`.
        weight: share of the steps that take a batch of this file.
        teacher: .npy of the outside teacher's vectors, float [texts, D], one row per text in file
            order; None for none.
        losses: those that its batches count, for a file that some outputs cannot learn from (a
            sparse head matches no translation); None for all.
    """

    path: Path
    weight: float = 1.0
    teacher: Path | None = None
    losses: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """All choices of a run. The losses' weights are those of the paper unless set otherwise.

    Attributes:
        model: checkpoint to start from: m3fast-tiny, a folder or a hub id.
        output: folder for the trained model, the log and the checkpoint to resume from.
        data: files to train on.
        steps: optimizer steps in all.
        batch_pairs: most queries per step, each with its passages; all compete with each other.
        batch_tokens: most tokens per step, as estimated from the bytes of texts; short texts make
            larger batches.
        sub_batch_tokens: tokens encoded at once. A batch of more is encoded twice, in parts: once
            for the losses, once more part by part for the gradients.
        negatives: hard negatives per query, of those that a row gives.
        query_length, passage_length: most tokens of a text.
        lr: peak learning rate; embedding_lr of the embedding tables, lr if not given.
        warmup: steps of rising learning rate, then it falls to 0 along a cosine.
        weight_decay: of matrices, not of norms, biases and embeddings.
        clip: largest norm of all gradients; 0 for none.
        temperature: of the scores of queries and passages in softmax.
        teacher_temperature: of the outside teacher's cosines.
        hybrid: w1, w2, w3 of s_inter = w1·s_dense + w2·s_lex + w3·s_mul.
        losses: weight of each loss.
        random_positions: share of texts whose positions go on at a random place behind the first
            token's, so that short texts train the whole position table.
        dtype: of matrix products, `auto` is bfloat16 where the hardware multiplies it.
        device: `auto`, `cpu` or `cuda[:n]`.
        seed: of data order and positions.
        checkpoint_every, log_every: steps.
        recompute_layers: keep only the input of each layer and compute it again for the gradient.
    """

    model: str
    output: Path
    data: tuple[DataFile, ...]
    steps: int
    batch_pairs: int = 128
    batch_tokens: int = 16384
    sub_batch_tokens: int = 16384
    negatives: int = 0
    query_length: int = 512
    passage_length: int = 512
    lr: float = 1e-5
    embedding_lr: float | None = None
    warmup: int = 100
    weight_decay: float = 0.01
    clip: float = 1.0
    temperature: float = 0.02
    teacher_temperature: float = 0.05
    hybrid: tuple[float, ...] = (1.0, 0.3, 1.0)
    losses: dict[str, float] = field(default_factory=dict[str, float])
    random_positions: float = 0.0
    dtype: str = "auto"
    device: str = "auto"
    seed: int = 0
    checkpoint_every: int = 500
    log_every: int = 20
    recompute_layers: bool = False


# The paper's (L + L')/2 with λ = (1, 0.1, 1), L of four terms and L' of three, each averaged.
PAPER = {
    **{"dense": 1 / 8, "sparse": 0.1 / 8, "colbert": 1 / 8, "hybrid": 1 / 8},
    **{"distill_dense": 1 / 6, "distill_sparse": 0.1 / 6, "distill_colbert": 1 / 6},
    **{"teacher_cosine": 0.0, "teacher_kl": 0.0},
}
_POSITIVE = (
    *("steps", "batch_pairs", "batch_tokens", "sub_batch_tokens", "query_length"),
    *("passage_length", "lr", "embedding_lr", "temperature", "teacher_temperature"),
    *("checkpoint_every", "log_every"),
)
_FROM_ZERO = ("negatives", "warmup", "weight_decay", "clip", "seed")


def read_config(file: Path) -> TrainConfig:
    """Read and check a run's TOML file. Relative paths in it start at its own folder.

    Raises:
        InputError: not TOML, an unknown or missing key, a value out of bounds, a file not found;
            the message names file and key.
    """
    try:
        raw = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{file}: expected a TOML file, found no file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{file}: expected TOML, found {error}") from error
    tables = raw.pop("data", None)
    if not isinstance(tables, list) or not tables:
        raise InputError(f"{file}: data: expected at least one [[data]] table, found {tables!r}")
    where = file.parent
    data = tuple(
        _make(DataFile, table, f"{file}: data[{i}]", where) for i, table in enumerate(tables)
    )
    config = _make(TrainConfig, raw | {"data": data}, str(file), where)
    local = where / config.model
    if local.is_dir():
        config = replace(config, model=str(local.resolve()))
    _check(config, str(file))
    return config


def _make(kind: type[Any], raw: Any, where: str, folder: Path) -> Any:
    """A dataclass of the values in a TOML table."""
    if not isinstance(raw, dict):
        raise InputError(f"{where}: expected a table, found {type(raw).__name__}")
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in raw.items():
        if key not in hints:
            raise InputError(f"{where}: {key}: expected one of {sorted(hints)}, found this key")
        values[key] = _typed(value, hints[key], f"{where}: {key}", folder)
    for f in fields(kind):
        if f.name not in values and f.default is MISSING and f.default_factory is MISSING:
            raise InputError(f"{where}: {f.name}: expected a value, found none")
    return kind(**values)


def _typed(value: Any, hint: Any, where: str, folder: Path) -> Any:
    if isinstance(hint, UnionType):
        hint = next(kind for kind in get_args(hint) if kind is not type(None))
    kind: type[Any] = get_origin(hint) or hint
    if kind is tuple and isinstance(value, list | tuple):
        item = get_args(hint)[0]
        return tuple(_typed(v, item, f"{where}[{i}]", folder) for i, v in enumerate(value))
    if kind is dict and isinstance(value, dict):
        return {k: _typed(v, float, f"{where}.{k}", folder) for k, v in value.items()}
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise InputError(f"{where}: expected a finite number, found {value}")
        return float(value)
    if kind is Path and isinstance(value, str):
        return (folder / Path(value).expanduser()).resolve()
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    names = {"Path": "a path", "tuple": "an array", "dict": "a table"}
    wanted = names.get(kind.__name__, kind.__name__)
    raise InputError(f"{where}: expected {wanted}, found {value!r}")


def _check(config: TrainConfig, file: str) -> None:
    for name in (*_POSITIVE, *_FROM_ZERO):
        value = getattr(config, name)
        if value is not None and (value < 0 or (value == 0 and name in _POSITIVE)):
            wanted = "more than 0" if name in _POSITIVE else "0 or more"
            raise InputError(f"{file}: {name}: expected {wanted}, found {value}")
    if len(config.hybrid) != 3 or min(config.hybrid) < 0 or sum(config.hybrid) <= 0:
        raise InputError(f"{file}: hybrid: expected three weights, found {list(config.hybrid)}")
    if not 0 <= config.random_positions <= 1:
        found = config.random_positions
        raise InputError(f"{file}: random_positions: expected a share from 0 to 1, found {found}")
    named = [("losses", config.losses)]
    named += [(f"data[{i}]: losses", d.losses or ()) for i, d in enumerate(config.data)]
    for where, names in named:
        if unknown := set(names) - set(LOSSES):
            raise InputError(f"{file}: {where}: expected some of {LOSSES}, found {unknown}")
    for name, weight in config.losses.items():
        if weight < 0:
            raise InputError(f"{file}: losses.{name}: expected 0 or more, found {weight}")
    for i, data in enumerate(config.data):
        for key, path in (("path", data.path), ("teacher", data.teacher)):
            if path is not None and not path.is_file():
                raise InputError(f"{file}: data[{i}]: {key}: expected a file, found none at {path}")
        if data.weight <= 0:
            raise InputError(
                f"{file}: data[{i}]: weight: expected more than 0, found {data.weight}"
            )
