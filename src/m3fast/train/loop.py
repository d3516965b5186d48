"""A training run: steps, log, checkpoints, and going on after a kill."""

from __future__ import annotations

import json
import math
import os
import time
from typing import TYPE_CHECKING, Any

import torch

from m3fast.checkpoint.folder import resolve
from m3fast.errors import ComputeError, InputError
from m3fast.runner.device import pick_devices, pick_dtype
from m3fast.text.tokenizer import Tokenizer
from m3fast.train.config import CONTRASTIVE, DISTILLED, LOSSES, PAPER, TEACHER
from m3fast.train.data import Batches
from m3fast.train.model import Model
from m3fast.train.record import CHECKPOINT, LOG, Mean, check_same, load, plain, read_log
from m3fast.train.step import forward_backward

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from m3fast.train.config import TrainConfig


def train(
    config: TrainConfig,
    *,
    show_progress: bool | None = None,
    report: Callable[[str], object] | None = None,
) -> Path:
    """Train until `config.steps`, going on where a run with the same config was cut off.

    Args:
        show_progress: a tqdm bar with losses and tokens/s; None shows it on a terminal only.
        report: takes lines on what is trained, from which step, and where an interrupt left it.

    Returns:
        The output folder: a checkpoint in the hub's layout, float16, and the log training.jsonl,
        one object every `log_every` steps (step, seconds, tokens, tokens_per_s, lr, norm of the
        gradients, mean of each loss since the last).

    Raises:
        InputError: a training file that is not as its format says or that no loss learns from,
            lengths that the model does not have, an output folder that holds a run with another
            config.
        CheckpointError: a model that cannot be loaded, or without BGE-M3's heads; a broken
            training.pt.
        ComputeError: gradients that are not finite.
    """
    say = report or (lambda _: None)
    run = _Run(config)
    for line in run.describe():
        say(line)
    run.resume()
    if run.kept:
        say(f"going on from step {run.kept:,}, kept in {run.file}")
    try:
        run.loop(show_progress)
    except KeyboardInterrupt:
        where = f"from step {run.kept:,}, kept in {run.file}" if run.kept else "from the beginning"
        say(f"stopped at step {run.batches.step:,}; the same command goes on {where}")
        raise
    run.model.save(config.output)
    return config.output


class _Run:
    def __init__(self, config: TrainConfig) -> None:
        self.config, self.file = config, config.output / CHECKPOINT
        self.saved: dict[str, Any] | None = None
        if self.file.exists():
            self.saved = load(self.file)
            check_same(self.saved["config"], plain(config), self.file)
        path = resolve(config.model)
        if path.resolve() == config.output.resolve():
            raise InputError(f"output: expected a folder other than the model's, found {path}")
        (self.device,) = pick_devices(config.device)[:1]
        dtype = pick_dtype(config.dtype, self.device)
        if dtype == torch.float16:
            raise InputError("dtype: expected 'auto', 'float32' or 'bfloat16', found 'float16'")
        self.bf16 = dtype == torch.bfloat16
        self.model = Model(path, self.device, config.recompute_layers)
        self.tokenizer = Tokenizer.from_dir(path)
        for name in ("query_length", "passage_length"):
            found, most = getattr(config, name), self.model.config.max_length
            if not 3 <= found <= most:
                raise InputError(f"{name}: expected 3 to {most} as of the model, found {found}")
        self.batches = Batches(config)
        self.weights = PAPER | config.losses
        self._check_losses()
        self.optimizer = torch.optim.AdamW(
            self._groups(), lr=config.lr, betas=(0.9, 0.98), fused=True
        )
        self.seconds, self.tokens, self.mean = 0.0, 0, Mean()
        self.kept = 0  # step of the checkpoint on disk

    def _weights(self, file: int) -> dict[str, float]:
        counted = self.config.data[file].losses
        return {k: w if counted is None or k in counted else 0.0 for k, w in self.weights.items()}

    def _check_losses(self) -> None:
        for i, file in enumerate(self.batches.files):
            weights, width = self._weights(i), self.model.config.hidden_size
            given = (*CONTRASTIVE, *DISTILLED) if file.pairs else ()
            given += () if file.teacher is None else TEACHER
            if not any(weights[name] for name in given):
                wanted = f"one of {', '.join(given)} above 0" if given else "a teacher for texts"
                raise InputError(f"data[{i}]: losses: expected {wanted}, found none")
            if file.teacher is None:
                continue
            if not any(self.weights[name] for name in TEACHER):
                wanted = f"{' or '.join(TEACHER)} above 0 for its teacher"
                raise InputError(f"data[{i}]: losses: expected {wanted}, found both 0")
            if weights["teacher_cosine"] and (found := file.teacher.shape[1]) != width:
                wanted = f"vectors of {width}, as the model's, for teacher_cosine"
                raise InputError(f"data[{i}]: teacher: expected {wanted}, found {found}")

    def describe(self) -> list[str]:
        c, m = self.config, self.model.config
        count = sum(tensor.numel() for tensor in self.model.tensors().values())
        dtype = "bfloat16" if self.bf16 else "float32"
        lines = [
            f"{c.model}: {m.n_layers} layers x {m.hidden_size}, {count:,} weights; "
            f"{self.device}, {dtype}"
        ]
        for i, file in enumerate(self.batches.files):
            rows = f"{len(file.rows):,} {'pairs' if file.pairs else 'texts'}"
            texts = f", {file.offsets[-1]:,} texts" if file.pairs else ""
            teacher = "" if file.teacher is None else ", with a teacher"
            lines.append(f"data[{i}] {file.data.path.name}: {rows}{texts}{teacher}")
        return [*lines, f"{c.steps:,} steps to {c.output}"]

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
        ours, theirs = self.model.tensors(), self.saved["model"]
        if {k: t.shape for k, t in ours.items()} != {k: t.shape for k, t in theirs.items()}:
            raise InputError(f"model: expected the shape kept in {self.file}, found another")
        with torch.no_grad():
            for name, tensor in ours.items():
                tensor.copy_(theirs[name])
        self.optimizer.load_state_dict(self.saved["optimizer"])
        self.batches.load_state(self.saved["batches"])
        self.seconds, self.tokens = self.saved["seconds"], self.saved["tokens"]
        self.mean = Mean(self.saved.get("sums"))
        self.kept = self.batches.step
        self.saved = None
        # What a killed run logged after its last checkpoint comes again.
        log = self.config.output / LOG
        rows = [row for row in read_log(log) if row["step"] <= self.kept]
        fresh = log.with_suffix(".new")
        fresh.write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.replace(fresh, log)

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
            began, last = time.perf_counter(), self.tokens
            while batches.step < c.steps:
                norm = self._step()
                bar.update()
                if batches.step % c.log_every == 0 or batches.step == c.steps:
                    now = time.perf_counter()
                    rate = (self.tokens - last) / (now - began)
                    self.seconds += now - began
                    began, last = now, self.tokens
                    row = {"step": batches.step, "seconds": round(self.seconds, 2)}
                    row |= {"tokens": self.tokens, "tokens_per_s": round(rate)}
                    row |= {"lr": self.optimizer.param_groups[0]["lr"], "norm": norm}
                    row |= self.mean.take()
                    print(json.dumps(row), file=log, flush=True)
                    bar.set_postfix(
                        {k: f"{row[k]:.3f}" for k in LOSSES if k in row}
                        | {"tokens/s": row["tokens_per_s"]}
                    )
                if batches.step % c.checkpoint_every == 0 or batches.step == c.steps:
                    self._save()

    def _step(self) -> float:
        c, step = self.config, self.batches.step
        rise = min(1.0, (step + 1) / max(1, c.warmup))
        fall = (1 + math.cos(math.pi * max(0, step - c.warmup) / max(1, c.steps - c.warmup))) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rise * fall
        batch = next(self.batches)
        weights = self._weights(batch.file)
        losses, tokens = forward_backward(
            self.model, self.tokenizer, batch, c, weights, self.bf16, [c.seed, step]
        )
        parameters = list(self.model.tensors().values())
        limit = c.clip or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit))
        if not math.isfinite(norm):
            raise ComputeError(
                f"step {step + 1}: expected finite gradients, found a norm of {norm}, with losses "
                f"{losses}: a lower lr may help"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.tokens += tokens
        self.mean.add({name: loss for name, loss in losses.items() if weights[name]})
        return norm

    def _save(self) -> None:
        """Atomically: a kill leaves the last checkpoint or this one, whole."""
        state = {
            "config": plain(self.config),
            "model": {k: t.detach() for k, t in self.model.tensors().items()},
            "optimizer": self.optimizer.state_dict(),
            "batches": self.batches.state(),
            "seconds": self.seconds,
            "tokens": self.tokens,
            "sums": self.mean.sums,
        }
        fresh = self.file.with_suffix(".new")
        torch.save(state, fresh)
        os.replace(fresh, self.file)
        self.kept = self.batches.step
