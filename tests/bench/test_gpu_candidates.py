"""What the GPU rows of the whole encoder rest on: a judge that can fail, and the strong gate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bench.core import workloads
from bench.gpu import candidates
from bench.peers import strong_gpu

from m3fast.checkpoint.config import ModelConfig
from m3fast.checkpoint.weights import load_weights
from m3fast.runner.cpu import Runner

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def made() -> tuple[ModelConfig, Any]:
    config = ModelConfig.from_dir(workloads.TINY)
    return config, load_weights(workloads.TINY, config, CPU, torch.float32)


@pytest.mark.parametrize("outputs", [("dense",), ("sparse",), ("colbert",), workloads.OUTPUTS])
def test_judge_of_encodings(made: tuple[ModelConfig, Any], outputs: tuple[str, ...]) -> None:
    config, weights = made
    x = candidates.batch(config, [20, 3, 7], CPU, 0)
    other = candidates.batch(config, [20, 3, 7], CPU, 1)
    submit = candidates.submits(Runner(config, weights, CPU), config, outputs)
    judge = candidates.judge(config, weights, x)
    found = submit(x)()
    assert [getattr(found, name) is not None for name in workloads.OUTPUTS] == [
        name in outputs for name in workloads.OUTPUTS
    ]
    assert judge("m3fast", None, lambda: found) == "" and judge("limit", None, None) == ""
    for name in outputs:
        wrong = replace(found, **{name: getattr(submit(other)(), name)})
        said = judge("m3fast", None, lambda wrong=wrong: wrong)
        assert ("weight" if name == "sparse" else name) in said


def test_judge_of_the_strong_baseline(made: tuple[ModelConfig, Any]) -> None:
    config, weights = made
    x = candidates.batch(config, [20, 3, 7], CPU, 0)
    judge = candidates.judge(config, weights, x)

    def attend(qkv: torch.Tensor) -> torch.Tensor:
        from m3fast.kernels.reference import varlen_attention_ref

        return varlen_attention_ref(qkv, x.ends)

    first = x.ends[:-1].long()
    found = strong_gpu.encode(
        config, weights, x.ids.long(), x.positions.long(), first, attend, strong_gpu.plain_layer
    )
    assert judge("strong", None, found) == ""
    for i, name in enumerate(("dense", "weight", "colbert")):
        wrong = [*found]
        wrong[i] = found[i].roll(1, -1 if i == 1 else 0)
        assert name in judge("strong", None, tuple(wrong))


def test_gate_sees_slow_products(
    made: tuple[ModelConfig, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock of the test's own: torch.mm's products take 2 s, the others 1 s, then 8."""
    now, of_others, real = 0.0, 0.0, strong_gpu.products

    def products(multiply: Any, *given: Any) -> Any:
        run, took = real(multiply, *given), 2.0 if multiply is torch.mm else of_others

        def taking(x: Any) -> None:
            nonlocal now
            now += took
            run(x)

        return taking

    def wall() -> Any:
        start = now
        return lambda: now - start

    monkeypatch.setattr(strong_gpu, "products", products)
    monkeypatch.setattr(strong_gpu, "wall", wall)
    for seconds, share in ((1.0, 2.0), (8.0, 0.25)):
        of_others = seconds
        assert strong_gpu.gemm_share(made[1], 64, CPU, 0, F.linear, rounds=2) == share


def test_products_are_those_of_the_layers(made: tuple[ModelConfig, Any]) -> None:
    seen = []
    weights = [made[1].layers[0].qkv.weight, made[1].layers[0].down.weight]
    seeing = strong_gpu.products(
        lambda x, w, b: seen.append((x.shape[1], w.shape, len(b))), weights, 5
    )
    seeing(None)
    assert seen == [(w.shape[1], w.shape, len(w)) for w in weights]
    strong_gpu.products(torch.mm, weights, 5)(None)
