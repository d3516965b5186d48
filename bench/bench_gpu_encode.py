"""The whole encoder on a GPU: one packed batch in GPU time, and text to numpy in wall time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from bench import gpupeers, peers, strong
from bench.harness import OURS, Bench, Row, at_most, micros, share, times
from bench.measure import P99_SAMPLES, Candidate, Sampled
from bench.workloads import Shape, checkpoint, padding_ratio, texts

AHEAD = 40e-3  # an eager batch: some 250 launches by a host that is slow today
STRONG, LINEARS = "packed, varlen_attn, torch.compile, CUDA graph", "bare linears"
# Random fp16 and bf16 encoders of 24 layers: the cosine that rounding leaves between vectors.
COSINE = 0.99


@dataclass
class Batch:
    """Token ids of texts end to end, on the host (`tokens`) and on the device."""

    tokens: Any
    order: np.ndarray
    ids: torch.Tensor
    positions: torch.Tensor
    ends: torch.Tensor
    longest: int


def _lengths(bench: Bench, mix: str, tokens: int) -> list[int]:
    """Lengths of one mix that sum to `tokens`, the last text cut."""
    random = np.random.default_rng(0)
    draw: dict[str, Callable[[], int]] = {
        "queries": lambda: int(random.integers(5, 41)),
        "passages": lambda: int(random.gamma(3, 60).clip(20, 512)),
        "documents": lambda: int(random.integers(2048, 8193)),
    }
    lengths: list[int] = []
    kinds = list(draw)
    while sum(lengths) < tokens:
        kind = mix if mix in draw else kinds[random.choice(3, p=(0.6, 0.37, 0.03))]
        length = draw[kind]() if not bench.scale.smoke else int(random.integers(2, 40))
        left = tokens - sum(lengths)
        lengths.append(min(length, left) if left >= 2 else 2)
    return lengths


def _batch(config: Any, lengths: list[int], device: torch.device, seed: int) -> Batch:
    from m3fast.packing import pack_texts
    from m3fast.tokenizer import TokenIds

    random = np.random.default_rng(seed)
    ends = gpupeers.offsets(lengths).astype(np.int64)
    ids = random.integers(4, config.vocab_size - 1, int(ends[-1])).astype(np.int32)
    ids[ends[:-1]], ids[ends[1:] - 1] = 0, 2
    tokens = TokenIds(ids, ends, np.zeros(len(lengths), np.bool_))
    order = np.arange(len(lengths))
    packed = pack_texts(tokens, order, config)
    arrays = (packed.ids, packed.positions, packed.cu_seqlens)
    on_device = (torch.from_numpy(a.copy()).to(device) for a in arrays)
    return Batch(tokens, order, *on_device, packed.max_seqlen)


def _model(bench: Bench, shape: Shape) -> tuple[Any, Any]:
    from m3fast.checkpoint import load_weights
    from m3fast.config import ModelConfig

    path = checkpoint(shape)
    config = ModelConfig.from_dir(path)
    dtype = bench.pick(torch.bfloat16, torch.float16)
    return config, load_weights(path, config, bench.device, dtype)


def _runner(bench: Bench, config: Any, weights: Any, graphs: bool = True) -> Any:
    from m3fast.gpurunner import GpuRunner

    return GpuRunner(config, weights, bench.device, graphs=graphs)


def _submits(runner: Any, config: Any) -> Candidate:
    """A batch is submitted, and its results not yet waited for."""
    from m3fast.runner import HeadOptions, Outputs

    options = HeadOptions(config.pooling, True, None, (0, 1, 2, 3))
    return lambda x: runner.submit(x.tokens, x.order, Outputs(True, True, True), options)


def _dense(found: Any) -> torch.Tensor | None:
    if callable(found):
        found = found().dense
    elif isinstance(found, tuple):
        found = found[0]
    return found


def _judge(expected: torch.Tensor, name: str, truth: Any, found: Any) -> str:
    vectors = _dense(found)
    if vectors is None:
        return ""
    cosine = (vectors.to(expected) * expected).sum(-1).min().item()
    return "" if cosine >= COSINE else f"a dense vector has cosine {cosine:.4f}"


def _expected(config: Any, weights: Any, x: Batch) -> torch.Tensor:
    """Dense vectors by plain torch in the same dtype, attention in fp32."""
    from m3fast.kernels.reference import varlen_attention_ref

    def attend(qkv: torch.Tensor) -> torch.Tensor:
        return varlen_attention_ref(qkv, x.ends)

    with torch.inference_mode():
        first = x.ends[:-1].long()
        ids, positions = x.ids.long(), x.positions.long()
        return strong.encode(
            config, weights, ids, positions, first, attend, strong.plain_layer
        )[0]  # fmt: skip


def _linears(bench: Bench, shape: Shape, tokens: int) -> Candidate:
    """The four products of every layer, with their weights read in turn, and nothing else."""
    gpupeers.cuda_only(bench.device)
    sizes = [(3, 1), (1, 1), (4, 1), (1, 4)]  # of the hidden size: out, in
    make = partial(torch.randn, device=bench.device, dtype=torch.bfloat16)
    weights = [
        [make(o * shape.hidden, i * shape.hidden) / 32 for o, i in sizes]
        for _ in range(shape.layers)
    ]
    x = {i: make(tokens, i * shape.hidden) for i in (1, 4)}
    out = {o: make(tokens, o * shape.hidden) for o in (1, 3, 4)}

    def run(_: Any) -> None:
        for layer in weights:
            for weight, (o, i) in zip(layer, sizes, strict=True):
                torch.mm(x[i], weight.t(), out=out[o])

    return run


@pytest.mark.parametrize("mix", ["passages", "mixed", "queries", "documents"])
def test_encode_batch(bench: Bench, mix: str) -> None:
    """32k tokens through all layers and heads; upload included, download not."""
    if bench.scale.smoke and mix != "mixed":
        pytest.skip("one toy size is that of the mixed row")
    shape = bench.pick(Shape(24), Shape(1, 128))
    config, weights = _model(bench, shape)
    lengths = _lengths(bench, mix, bench.pick(32768, 60))
    inputs = [_batch(config, lengths, bench.device, seed) for seed in range(2)]
    runner = _runner(bench, config, weights, graphs=bench.device.type == "cuda")
    tokens = sum(lengths)
    aims = {LINEARS: share(0.9)}
    if mix == "passages":
        aims |= {STRONG: times(1.3), OURS: at_most(float(f"{tokens / 0.85e6:.3g}"), " s")}
    bench.compare(
        Row(
            f"encode on the GPU, {mix}, {shape.layers} layers, bf16",
            shape=f"{shape}, {len(lengths)} texts of {min(lengths)} to {max(lengths)} tokens",
            dtype=str(weights.word.dtype).removeprefix("torch."),
            tokens=tokens,
            padding=padding_ratio(lengths, 32),
            unit="tokens/s",
            note="GPU time of one batch with all three outputs, its upload included; the padding "
            "ratio is that of sorted batches of 32; bare linears are a limit, not a peer",
        ),
        {
            OURS: lambda: _submits(runner, config),
            STRONG: partial(strong.compiled, config, weights, inputs[0], bench.device),
            LINEARS: partial(_linears, bench, shape, tokens),
        },
        inputs,
        rounds=30,
        aims=aims,
        judge=partial(_judge, _expected(config, weights, inputs[0])),
        ahead=AHEAD,
        stream=runner.stream,
    )


@pytest.mark.parametrize("tokens", [20, 8 * 20])
def test_query_gpu_time(bench: Bench, tokens: int) -> None:
    """One query, and eight of them: what the GPU does in it, launches aside."""
    shape = bench.pick(Shape(24), Shape(1, 128))
    if bench.scale.smoke and tokens > 20:
        pytest.skip("one toy size is enough")
    config, weights = _model(bench, shape)
    lengths = [20] * (tokens // 20)
    inputs = [_batch(config, lengths, bench.device, seed) for seed in range(4)]
    runner = _runner(bench, config, weights, graphs=bench.device.type == "cuda")
    submit = _submits(runner, config)
    for _ in range(bench.pick(3, 1)):  # eager, captured, replayed
        submit(inputs[0])()
    bench.compare(
        Row(
            f"{len(lengths)} x 20 tokens on the GPU, {shape.layers} layers, bf16",
            shape=f"{shape}, texts of 20 tokens, all three outputs",
            dtype=str(weights.word.dtype).removeprefix("torch."),
            tokens=tokens,
            note="GPU time from upload to download; weights come from memory, not from L2",
        ),
        {
            OURS: lambda: submit,
            STRONG: partial(strong.compiled, config, weights, inputs[0], bench.device),
        },
        inputs,
        rounds=P99_SAMPLES,
        aims={OURS: micros(400)} if tokens == 20 else {},
        judge=partial(_judge, _expected(config, weights, inputs[0])),
        ahead=2e-3,
        stream=runner.stream,
    )


def test_memory(bench: Bench) -> None:
    """What a batch of 32k tokens needs beside the weights."""
    row = Row(
        "GPU memory of 32,768 tokens, 24 layers, bf16",
        shape="24 x 1024, passages, all three outputs",
        dtype="bfloat16",
        unit="MiB",
        note="peak of torch's allocator less the weights, after two batches in flight",
    )
    if bench.device.type != "cuda":
        pytest.skip("needs a CUDA device")
    shape = Shape(24)
    config, weights = _model(bench, shape)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(bench.device)
    torch.cuda.reset_peak_memory_stats(bench.device)
    runner = _runner(bench, config, weights)
    batch = _batch(config, _lengths(bench, "passages", 32768), bench.device, 0)
    submit = _submits(runner, config)
    for wait in [submit(batch), submit(batch)]:
        wait()
    peak = (torch.cuda.max_memory_allocated(bench.device) - before) / 2**20
    bench.add(row, {OURS: Sampled([peak])}, {}, {OURS: at_most(800, " MiB")})


def _engine(bench: Bench, shape: Shape) -> Any:
    from m3fast import Engine

    dtype = bench.pick("bfloat16", "float32")
    return Engine.from_pretrained(checkpoint(shape), device=str(bench.device), dtype=dtype)


def _flag(bench: Bench, shape: Shape) -> Candidate:
    gpupeers.cuda_only(bench.device)
    from FlagEmbedding import BGEM3FlagModel

    path = str(checkpoint(shape))
    model = BGEM3FlagModel(path, use_fp16=False, use_bf16=True, devices=str(bench.device))
    return lambda x: torch.from_numpy(np.atleast_2d(model.encode(x, **peers.ALL)["dense_vecs"]))


def _sentence_transformers(bench: Bench, shape: Shape) -> Candidate:
    """Dense vectors only, the one output it has for such a checkpoint."""
    gpupeers.cuda_only(bench.device)
    from sentence_transformers import SentenceTransformer, models

    part = models.Transformer(str(checkpoint(shape)), model_args={"torch_dtype": torch.bfloat16})
    parts = [part, models.Pooling(shape.hidden, pooling_mode="cls"), models.Normalize()]
    model = SentenceTransformer(modules=parts, device=str(bench.device))
    return lambda x: torch.from_numpy(np.atleast_2d(model.encode(x, batch_size=64)))


def _cosine(name: str, truth: torch.Tensor, found: torch.Tensor) -> str:
    return _judge(truth, name, truth, found)


def test_text_to_numpy(bench: Bench) -> None:
    """Passages through tokeniser, encoder and heads; every output as numpy on the host."""
    shape = bench.pick(Shape(24), Shape(1, 128))
    lengths = _lengths(bench, "passages", bench.pick(180 * 2048, 60))
    engine = _engine(bench, shape)
    inputs = [texts([max(n, 3) for n in lengths], seed) for seed in range(2)]
    bench.compare(
        Row(
            f"encode on the GPU, text to numpy, {shape.layers} layers, bf16",
            shape=f"{shape}, {len(lengths)} texts of {min(lengths)} to {max(lengths)} tokens",
            dtype=str(engine.dtype).removeprefix("torch."),
            tokens=sum(lengths),
            padding=padding_ratio(lengths, 64),
            unit="tokens/s",
            note="wall time; sentence-transformers returns dense vectors only",
        ),
        {
            OURS: lambda: lambda x: torch.from_numpy(engine.encode(x).dense),
            "FlagEmbedding": partial(_flag, bench, shape),
            "sentence-transformers": partial(_sentence_transformers, bench, shape),
        },
        inputs,
        rounds=5,
        aims={"FlagEmbedding": times(5)},
        warm=inputs[0][:64],
        judge=_cosine,
    )


def test_query_latency(bench: Bench) -> None:
    """A str in, three arrays out, with CUDA graphs and launched kernel by kernel."""
    from m3fast.graphs import Graphs

    shape = bench.pick(Shape(24), Shape(1, 128))
    engine, eager = _engine(bench, shape), _engine(bench, shape)
    eager.runner.graphs = Graphs(None)
    if bench.device.type == "cuda":
        engine.warmup()
    bench.compare(
        Row(
            f"one query of 20 tokens on the GPU, {shape.layers} layers, bf16",
            shape=f"{shape}, a str in, three arrays out",
            dtype=str(engine.dtype).removeprefix("torch."),
            note="wall time, warm",
        ),
        {
            OURS: lambda: lambda x: torch.from_numpy(engine.encode(x).dense),
            "without graphs": lambda: lambda x: torch.from_numpy(eager.encode(x).dense),
            "FlagEmbedding": partial(_flag, bench, shape),
            "sentence-transformers": partial(_sentence_transformers, bench, shape),
        },
        [texts([20], seed)[0] for seed in range(16)],
        rounds=P99_SAMPLES,
        aims={OURS: micros(800), "FlagEmbedding": times(20)},
        judge=_cosine,
    )
