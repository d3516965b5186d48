"""What `Engine.from_pretrained` loads: checked arguments, the token budget, a runner per device."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import torch

from m3fast.checkpoint.config import Pooling
from m3fast.checkpoint.weights import load_weights
from m3fast.errors import InputError
from m3fast.inputs import check_positive
from m3fast.runner.device import pick_dtype
from m3fast.runner.gpu import make_runner

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from m3fast.checkpoint.config import ModelConfig
    from m3fast.runner.cpu import Runner

# Tokens per batch. On a CPU larger batches only outgrow the caches, at so many numbers per hidden
# state buffer: 1,024 tokens of BGE-M3, more of a narrower model, whose batches are sooner done and
# should not be all Python. A GPU wants large ones.
CPU_TOKENS_TIMES_WIDTH, CPU_TOKEN_BUDGET, GPU_TOKEN_BUDGET = 1 << 20, 1024, 32768


def check_arguments(
    token_budget: int | None, truncate_dim: int | None, pooling: str | None
) -> None:
    """InputError unless each is None or as `Engine.from_pretrained` describes it."""
    if token_budget is not None:
        check_positive("token_budget", token_budget)
    if truncate_dim is not None:
        check_positive("truncate_dim", truncate_dim)
    if pooling not in (None, *get_args(Pooling)):
        raise InputError(f"pooling: expected one of {get_args(Pooling)}, found {pooling!r}")


def default_token_budget(device: torch.device, config: ModelConfig) -> int:
    """Tokens per batch where the caller names no number."""
    if device.type != "cpu":
        return GPU_TOKEN_BUDGET
    return max(CPU_TOKEN_BUDGET, CPU_TOKENS_TIMES_WIDTH // config.hidden_size)


def load_runners(
    path: Path,
    config: ModelConfig,
    devices: Sequence[torch.device],
    dtype: torch.dtype,
    colbert_dim: int,
) -> list[Runner]:
    """The model on each device.

    In torch.int8 what is no table or linear layer is in the device's own floating dtype.

    Raises:
        CheckpointError: its weights are missing or broken.
    """

    int8 = dtype == torch.int8

    def runner(on: torch.device) -> Runner:
        floats = pick_dtype("auto", on) if int8 else dtype
        pack = on.type == "cpu"
        weights = load_weights(path, config, on, floats, colbert_dim, pack=pack, int8=int8)
        return make_runner(config, weights, on)

    return [runner(device) for device in devices]
