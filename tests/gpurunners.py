"""An engine on GPU kernels and one on the CPU, for the tests of the runner of a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoints import TEXTS as ALL_TEXTS
from nearness import as_rough

from m3fast import Engine
from m3fast.kernels import dispatch
from m3fast.runner.base import Outputs
from m3fast.runner.gpu import GpuRunner

ALL = Outputs(True, True, True)
SHAPE = dict(hidden=64, heads=2, ffn=96, layers=1, seed=8)
# 1 to 120 tokens and all kinds of special ones; the interpreter is slow.
TEXTS = [*ALL_TEXTS[:3], *ALL_TEXTS[5:7], ALL_TEXTS[8], ALL_TEXTS[10]]


def cpu_engine(path: Path, monkeypatch: pytest.MonkeyPatch, **options) -> Engine:
    """The path without GPU kernels."""
    with monkeypatch.context() as patch:
        patch.setattr(dispatch, "interpreter", False)
        return Engine.from_pretrained(path, device="cpu", dtype="float32", **options)


def encode(engine: Engine, monkeypatch: pytest.MonkeyPatch, texts=TEXTS, **options):
    with monkeypatch.context() as patch:
        if not isinstance(engine.runner, GpuRunner):
            patch.setattr(dispatch, "interpreter", False)
        return engine.encode(texts, max_length=options.pop("max_length", 128), **options)


def random_ids(rng, vocab: int, texts: int, longest: int) -> list[list[int]]:
    return ids_of(rng, vocab, rng.integers(2, longest + 1, texts))


def ids_of(rng, vocab: int, lengths) -> list[list[int]]:
    return [[0, *rng.integers(4, vocab, n - 2).tolist(), 2] for n in lengths]


def as_near_as_the_cpu(path: Path, ids: list[list[int]]) -> None:
    """bf16 on the GPU is as near to fp32 as bf16 on the CPU."""
    exact, rough, found = (
        Engine.from_pretrained(path, device=device, dtype=dtype).encode(ids)
        for device, dtype in (("cpu", "float32"), ("cpu", "bfloat16"), ("cuda", "bfloat16"))
    )
    as_rough(found, rough, exact)
