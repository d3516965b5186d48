"""A training run: steps, log, checkpoints, and going on after a kill."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from typing import TYPE_CHECKING, Any

import torch

from m3fast.checkpoint import resolve
from m3fast.errors import InputError
from m3fast.runner import pick_devices, pick_dtype
from m3fast.tokenizer import Tokenizer
from m3fast.train.config import LOSSES, PAPER
from m3fast.train.data import Batches
from m3fast.train.model import Model
from m3fast.train.step import forward_backward

if TYPE_CHECKING:
    from pathlib import Path

    from m3fast.train.config import TrainConfig

# Files in the output folder, beside those of the trained model.
CHECKPOINT, LOG = "training.pt", "training.jsonl"


def train(config: TrainConfig, *, show_progress: bool | None = None) -> Path:
    """Train until `config.steps`, going on where a run with the same config was cut off.

    Args:
        show_progress: a tqdm bar with losses and tokens/s; None shows it on a terminal only.

    Returns:
        The output folder: a checkpoint in the hub's layout, float16, and the log training.jsonl,
        one object every `log_every` steps (step, seconds, tokens, tokens_per_s, lr, norm of the
        gradients, mean of each loss since the last).

    Raises:
        InputError: a training file that is not as its format says, or an output folder that
            holds a run with another config.
        CheckpointError: a model that cannot be loaded, or without BGE-M3's heads.
    """
    run = _Run(config)
    run.resume()
    run.loop(show_progress)
    run.model.save(config.output)
    return config.output


class _Run:
    def __init__(self, config: TrainConfig) -> None:
        self.config, self.file = config, config.output / CHECKPOINT
        self.saved: dict[str, Any] | None = None
        if self.file.exists():
            saved: dict[str, Any] = torch.load(self.file, map_location="cpu", weights_only=True)
            _same(saved["config"], _plain(config), self.file)
            self.saved = saved
        path = resolve(config.model)
        (device,) = pick_devices(config.device)[:1]
        self.bf16 = pick_dtype(config.dtype, device) == torch.bfloat16
        self.model = Model(path, device, config.recompute_layers)
        self.tokenizer = Tokenizer.from_dir(path)
        self.batches = Batches(config)
        self.weights = PAPER | config.losses
        self.optimizer = torch.optim.AdamW(
            self._groups(), lr=config.lr, betas=(0.9, 0.98), fused=True
        )
        self.seconds, self.tokens = 0.0, 0

    def _groups(self) -> list[dict[str, Any]]:
        """Matrices decay, norms, biases and embeddings do not; embeddings have their own rate."""
        c = self.config
        groups: list[dict[str, Any]] = [
            {"params": [], "peak": c.lr, "weight_decay": c.weight_decay},
            {"params": [], "peak": c.lr, "weight_decay": 0.0},
            {"params": [], "peak": c.embedding_lr or c.lr, "weight_decay": 0.0},
        ]
        for name, tensor in self.model.tensors().items():
            table = name in ("embeddings.word", "embeddings.position")
            groups[2 if table else tensor.dim() < 2]["params"].append(tensor)
        return groups

    def resume(self) -> None:
        if self.saved is None:
            self.config.output.mkdir(parents=True, exist_ok=True)
            (self.config.output / LOG).write_text("")
            return
        with torch.no_grad():
            for name, tensor in self.model.tensors().items():
                tensor.copy_(self.saved["model"][name])
        self.optimizer.load_state_dict(self.saved["optimizer"])
        self.batches.load_state(self.saved["batches"])
        self.seconds, self.tokens = self.saved["seconds"], self.saved["tokens"]
        # What a killed run logged after its last checkpoint comes again.
        log = self.config.output / LOG
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        kept = [json.dumps(row) + "\n" for row in rows if row["step"] <= self.batches.step]
        log.write_text("".join(kept))
        self.saved = None

    def loop(self, show: bool | None) -> None:
        from tqdm import tqdm

        c, batches = self.config, self.batches
        with (
            (c.output / LOG).open("a") as log,
            tqdm(
                total=c.steps,
                initial=batches.step,
                unit="step",
                disable=None if show is None else not show,
            ) as bar,
        ):
            mean, began, last = _Mean(), time.perf_counter(), self.tokens
            while batches.step < c.steps:
                norm = self._step(mean)
                bar.update()
                if batches.step % c.log_every == 0 or batches.step == c.steps:
                    now = time.perf_counter()
                    rate = (self.tokens - last) / (now - began)
                    self.seconds += now - began
                    began, last = now, self.tokens
                    row = {"step": batches.step, "seconds": round(self.seconds, 2)}
                    row |= {"tokens": self.tokens, "tokens_per_s": round(rate)}
                    row |= {"lr": self.optimizer.param_groups[0]["lr"], "norm": norm, **mean.take()}
                    print(json.dumps(row), file=log, flush=True)
                    bar.set_postfix(
                        {k: f"{row[k]:.3f}" for k in LOSSES if k in row}
                        | {"tokens/s": row["tokens_per_s"]}
                    )
                if batches.step % c.checkpoint_every == 0 or batches.step == c.steps:
                    self._save()

    def _step(self, mean: _Mean) -> float:
        c, step = self.config, self.batches.step
        rise = min(1.0, (step + 1) / max(1, c.warmup))
        fall = (1 + math.cos(math.pi * max(0, step - c.warmup) / max(1, c.steps - c.warmup))) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rise * fall
        batch = next(self.batches)
        counted = c.data[batch.file].losses
        weights = {
            k: w if counted is None or k in counted else 0.0 for k, w in self.weights.items()
        }
        losses, tokens = forward_backward(
            self.model, self.tokenizer, batch, c, weights, self.bf16, [c.seed, step]
        )
        parameters = list(self.model.tensors().values())
        limit = c.clip or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit, error_if_nonfinite=True))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.tokens += tokens
        mean.add({name: loss for name, loss in losses.items() if weights[name]})
        return norm

    def _save(self) -> None:
        """Atomically: a kill leaves the last checkpoint or this one, whole."""
        state = {
            "config": _plain(self.config),
            "model": {k: t.detach() for k, t in self.model.tensors().items()},
            "optimizer": self.optimizer.state_dict(),
            "batches": self.batches.state(),
            "seconds": self.seconds,
            "tokens": self.tokens,
        }
        fresh = self.file.with_suffix(".new")
        torch.save(state, fresh)
        os.replace(fresh, self.file)


class _Mean:
    """Means of losses, each over the steps that had it."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = {}

    def add(self, losses: dict[str, float]) -> None:
        for name, loss in losses.items():
            self._sums.setdefault(name, []).append(loss)

    def take(self) -> dict[str, float]:
        found = {k: sum(self._sums[k]) / len(self._sums[k]) for k in LOSSES if k in self._sums}
        self._sums = {}
        return found


def _plain(config: TrainConfig) -> dict[str, Any]:
    """The config as JSON would give it back."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def _same(old: dict[str, Any], new: dict[str, Any], file: Path) -> None:
    # How often to save changes nothing in what is learnt.
    keys = [k for k in new if old.get(k) != new[k] and k not in ("checkpoint_every", "output")]
    if keys:
        name = keys[0]
        raise InputError(
            f"{name}: expected {old.get(name)!r} as in the run of {file}, found {new[name]!r}; "
            "take another output folder, or delete this one to begin anew"
        )
