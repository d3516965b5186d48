"""What the encoder's rows are made of: lengths, work and bytes, adapters of peers, their gate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench.core import workloads
from bench.peers import encoders, encodings, strong_cpu, strong_parts
from bench.peers.encodings import KEYS
from bench.peers.linears import LINEARS

from m3fast.checkpoint.config import ModelConfig

Shape = workloads.Shape


@pytest.mark.parametrize("name", workloads.MIXES)
@pytest.mark.parametrize("tokens", [3, 4, 5, 41, 1000, 30_000])
@pytest.mark.parametrize("longest", [8, 9, 64, 8192])
def test_a_mix_sums_to_its_tokens(name: str, tokens: int, longest: int) -> None:
    lengths = workloads.mix(name, tokens, 1, longest)
    assert sum(lengths) == tokens
    assert all(3 <= n <= longest for n in lengths)
    assert lengths == workloads.mix(name, tokens, 1, longest)


def test_mixes_are_what_they_say() -> None:
    chat, passages, documents, mixed = (workloads.mix(n, 500_000) for n in workloads.MIXES)
    assert set(chat[:-1]) == set(range(5, 41))
    assert min(passages[:-1]) >= 20 and max(passages) == 512
    assert sum(passages) / len(passages) == pytest.approx(180, rel=0.05)
    assert min(documents[:-1]) >= 2048 and 7000 < max(documents) <= 8192
    assert sum(n > 512 for n in mixed) / len(mixed) == pytest.approx(0.03, abs=0.01)
    assert workloads.mix("chat", 1000, 1) != workloads.mix("chat", 1000, 2)
    with pytest.raises(ValueError, match="passages"):
        workloads.mix("queries", 100)
    with pytest.raises(ValueError, match="too few"):
        workloads.mix("chat", 2)


@pytest.mark.parametrize("widening", [2, 4])
def test_work_is_that_of_the_products(widening: int) -> None:
    """Counted product by product, for two texts on two layers."""
    shape, lengths = Shape(2, 128, widening), [3, 5]
    h, f = 128, 128 * widening
    linears = sum(2 * 8 * m * n for m, n in [(3 * h, h), (h, h), (f, h), (h, f)])
    attention = sum(2 * n * n * h for n in lengths) * 2  # scores, then the mix of values
    expected = 2 * (linears + attention)
    assert workloads.encoder_work(shape, lengths, ("sparse",)) == expected + 2 * 8 * h
    assert workloads.encoder_work(shape, lengths) == expected + 2 * 8 * h * h + 2 * 8 * h


@pytest.mark.parametrize("widening", [2, 4])
def test_dense_alone_spares_work_in_the_last_layer(widening: int) -> None:
    shape, lengths, h = Shape(2, 128, widening), [3, 5], 128
    kv = 2 * 8 * 2 * h * h
    rest = 2 * 2 * (2 + 2 * widening) * h * h  # of two tokens
    attention = 2 * 2 * 8 * h
    one = workloads.encoder_work(Shape(1, 128, widening), lengths, ("sparse",)) - 2 * 8 * h
    assert workloads.encoder_work(shape, lengths, ("dense",)) == one + kv + rest + attention


@pytest.mark.parametrize("widening", [2, 4])
def test_weight_bytes_are_those_of_the_checkpoint(widening: int) -> None:
    shape = Shape(2, 128, widening)
    state = workloads.random_encoder(shape, vocab=10, positions=10)
    size = sum(v.numel() for k, v in state.items() if not k.startswith("embeddings."))
    assert workloads.weight_bytes(shape, 4) == 4 * size
    head = sum(v.numel() for k, v in state.items() if k.startswith(("colbert", "sparse")))
    assert workloads.weight_bytes(shape, 2, ("dense",)) == 2 * (size - head)


@pytest.fixture(scope="module")
def odd_texts() -> list[str]:
    """Lengths 2 (no word), 3, many of one length, beyond 512; in no order."""
    return ["", *workloads.texts([3, 41, 7, 7, 600, 90, 7, 8, 3], 1), "the the the the"]


@pytest.fixture(scope="module")
def odd_truth(odd_texts: list[str]) -> Any:
    return encoders.m3fast(workloads.TINY)(odd_texts)


ADAPTERS = {
    "onnxruntime": lambda path, sample, outputs: encoders.onnx_runtime(path, 1, sample, outputs),
    "openvino": lambda path, sample, outputs: encoders.openvino(path, 1, sample, False, outputs),
    "torch": lambda path, sample, outputs: strong_cpu.StrongCpu(
        path, torch.float32, sample, outputs
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("outputs", [workloads.OUTPUTS, ("sparse",), ("colbert",), ("dense",)])
@pytest.mark.parametrize("package", ADAPTERS)
def test_adapters_do_the_same_work(
    package: str, outputs: tuple[str, ...], odd_texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padding, batches, empty texts and the sparse rows, with settings by default and by trial."""
    pytest.importorskip(package)
    monkeypatch.setattr(strong_cpu, "compiled", lambda: (strong_parts.EAGER, ""))  # seconds
    monkeypatch.setattr(strong_cpu, "BUDGETS", (16, 64, 4096))
    model = encoders.m3fast(workloads.TINY, outputs=outputs)
    truth, one = model(odd_texts), model(odd_texts[1])
    judge = encodings.differ(1e-4, outputs)
    for sample in ([], [text for text in odd_texts if len(text) < 500]):
        encode = ADAPTERS[package](workloads.TINY, sample, outputs)
        found = encode(odd_texts)
        assert judge(package, truth, found) == ""
        if "colbert" in outputs:  # all tokens but <s>, none cut off
            assert [len(v) for v in found["colbert_vecs"][:6]] == [1, 2, 40, 6, 6, 599]
        assert {k for k, v in found.items() if v is not None} == {KEYS[o] for o in outputs}
        assert judge(package, one, encode(odd_texts[1])) == ""


@pytest.mark.parametrize("width", [1, 4, 16, 1000])
@pytest.mark.parametrize("budget", [1, 50, 4096])
def test_strong_baseline_in_all_groupings(
    width: int, budget: int, odd_texts: list[str], odd_truth: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strong_cpu, "compiled", lambda: (strong_parts.EAGER, ""))
    strong = strong_cpu.StrongCpu(workloads.TINY, torch.float32)
    strong._width, strong._budget = width, budget
    assert encodings.differ(1e-4)("strong", odd_truth, strong(odd_texts)) == ""


def test_gate_sees_slow_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of the test's own: the baseline's products take 1 s, then 3, the ceiling's 2."""
    monkeypatch.setattr(strong_cpu, "compiled", lambda: (strong_parts.EAGER, ""))
    strong = strong_cpu.StrongCpu(workloads.checkpoint(Shape(2, 128)), torch.float32)
    now = 0.0

    def taking(seconds: float, product: Any) -> Any:
        def run(x: torch.Tensor) -> Any:
            nonlocal now
            now += seconds
            return product(x)

        return run

    def timed(run: Any, x: torch.Tensor) -> float:
        start = now
        assert run(x).shape[0] == 64
        return now - start

    bare, ways = strong_cpu.roof.products, strong_cpu.WAYS
    monkeypatch.setattr(strong_cpu.measure, "timed", timed)
    monkeypatch.setattr(
        strong_cpu.roof, "products",
        lambda *given: {name: taking(2.0, run) for name, run in bare(*given).items()},
    )  # fmt: skip
    for seconds, share in ((1.0, 2.0), (3.0, 2 / 3)):
        slow = {
            name: lambda *given, way=way, s=seconds: taking(s, way(*given))
            for name, way in ways.items()
        }
        monkeypatch.setattr(strong_cpu, "WAYS", slow)
        assert strong.gemm_share(64, rounds=2) == pytest.approx(share)


def test_results_that_lack_an_output_are_seen() -> None:
    judge = encodings.differ(1e-3, ("dense",))
    vectors = {"dense_vecs": np.ones((1, 4))}
    assert judge("peer", vectors, dict(vectors)) == ""
    assert judge("peer", vectors, {"dense_vecs": None}) == "no dense"
    assert judge("peer", vectors, None) == "no result"
    assert judge(LINEARS, vectors, None) == ""
    assert encodings.differ(1e-3)("peer", vectors, vectors) == "no sparse, colbert"


def test_the_fastest_batch_size_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def encode(texts: Any, size: int) -> Any:
        asked.append(size)
        return size

    monkeypatch.setattr(
        encoders.measure, "fastest",
        lambda candidates, value, warm: min(candidates, key=lambda n: abs(candidates[n]([]) - 4)),
    )  # fmt: skip
    sample = ["text"] * 6
    assert encoders._tuned("fake", encode, (1, 4, 8, 16), sample)(sample) == 4
    assert set(asked) == {1, 4, 8}, "16 would be the one batch that 8 is already"
    assert encoders._tuned("fake", encode, (1, 4, 8, 16), ())(sample) == 1


def test_the_embedded_model_in_floats_and_in_int8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    floats, int8 = ModelConfig.from_dir(workloads.TINY), workloads.quantized(workloads.TINY)
    assert int8 == workloads.EMBEDDED and floats == replace(ModelConfig.from_dir(int8), int8=False)
    monkeypatch.setattr(workloads, "CACHE", tmp_path / "cache")
    made = workloads._floats(int8)
    assert made.name == "m3fast-tiny" and made == workloads._floats(int8)
    for file in ("config.json", "model.safetensors"):
        assert (made / file).read_bytes() == (workloads.TINY / file).read_bytes()
    assert workloads._floats(made) == made
    assert len(list((tmp_path / "cache").iterdir())) == 1
