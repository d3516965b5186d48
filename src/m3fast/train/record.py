"""The files of a run beside its model: the log, and the state to go on from."""

from __future__ import annotations

import dataclasses
import json
import pickle
from typing import TYPE_CHECKING, Any

import torch

from m3fast.errors import CheckpointError, InputError
from m3fast.train.config import LOSSES

if TYPE_CHECKING:
    from pathlib import Path

    from m3fast.train.config import TrainConfig

# Files in the output folder, beside those of the trained model.
CHECKPOINT, LOG = "training.pt", "training.jsonl"


class Mean:
    """Means of losses, each over the steps that had it."""

    def __init__(self, sums: dict[str, list[float]] | None = None) -> None:
        self.sums = sums or {}

    def add(self, losses: dict[str, float]) -> None:
        for name, loss in losses.items():
            self.sums.setdefault(name, []).append(loss)

    def take(self) -> dict[str, float]:
        found = {k: sum(self.sums[k]) / len(self.sums[k]) for k in LOSSES if k in self.sums}
        self.sums = {}
        return found


def read_log(file: Path) -> list[dict[str, Any]]:
    """Rows of training.jsonl up to a line that a kill cut short; none without the file."""
    rows: list[dict[str, Any]] = []
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def load(file: Path) -> dict[str, Any]:
    """The state that a run kept in training.pt.

    Raises:
        CheckpointError: it is broken, or no such file.
    """
    try:
        saved: Any = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{file}: expected a training run's state, found {reason}") from error
    if not isinstance(saved, dict) or not {"config", "model", "batches"} <= saved.keys():
        raise CheckpointError(f"{file}: expected a training run's state, found something else")
    return saved


def plain(config: TrainConfig) -> dict[str, Any]:
    """The config as JSON would give it back."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def check_same(old: dict[str, Any], new: dict[str, Any], file: Path) -> None:
    """InputError naming a key in which two configs differ: a run goes on only as it began."""
    # How often to save changes nothing in what is learnt.
    keys = [k for k in new if old.get(k) != new[k] and k not in ("checkpoint_every", "output")]
    if keys:
        name = keys[0]
        raise InputError(
            f"{name}: expected {old.get(name)!r} as in the run of {file}, found {new[name]!r}; "
            "take another output folder, or delete that file to begin anew"
        )
