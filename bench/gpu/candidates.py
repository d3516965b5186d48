"""What the GPU rows of the whole encoder share: batches, runners, peers, and the judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.core import roof
from bench.core.harness import Bench
from bench.core.measure import Absent, Candidate
from bench.core.workloads import OUTPUTS, Shape
from bench.peers import encoders, ops, strong_gpu

TOKENS = 32768
AHEAD = 40e-3  # an eager batch: some 250 launches by a host that is slow today
STRONG, LINEARS = "packed, varlen_attn, torch.compile, CUDA graph", "bare linears"
FLAG, SENTENCE = "FlagEmbedding", "sentence-transformers"
UNPADDED = "sentence-transformers, unpadded"
SPECIAL = (0, 1, 2, 3)
# The least cosine of two vectors, and the most by which token weights differ, as a share of the
# largest. bf16 beside fp32 in a random encoder of 24 layers, on a CPU: 0.9998 and 4 %.
COSINE, WEIGHT = 0.995, 0.1


@dataclass
class Batch:
    """Token ids of texts end to end, on the host (`parts`) and on the device."""

    parts: list[Any]
    ids: torch.Tensor
    positions: torch.Tensor
    ends: torch.Tensor
    longest: int


def batch(config: Any, lengths: Sequence[int], device: torch.device, seed: int) -> Batch:
    from m3fast.model.packing import pack_texts
    from m3fast.types import Selection, TokenIds

    random = np.random.default_rng(seed)
    ends = ops.offsets(lengths).astype(np.int64)
    ids = random.integers(4, config.vocab_size - 1, int(ends[-1])).astype(np.int32)
    ids[ends[:-1]], ids[ends[1:] - 1] = 0, 2
    tokens = TokenIds(ids, ends, np.zeros(len(lengths), np.bool_))
    parts = [Selection(tokens, np.arange(len(lengths)))]
    packed = pack_texts(parts, config)
    arrays = (packed.ids, packed.positions, packed.cu_seqlens)
    on_device = (torch.from_numpy(a.copy()).to(device) for a in arrays)
    return Batch(parts, *on_device, packed.max_seqlen)


def encoder_shape(bench: Bench) -> Shape:
    """BGE-M3's size, or --model's; in a smoke test a layer, for kernels that are interpreted."""
    toy = bench.scale.smoke and not bench.model
    return Shape(1, 128) if toy else bench.encoder_shape(24)


def not_quick(bench: Bench, extra: bool) -> None:
    """Skip a row that says less than its siblings where minutes count."""
    if extra and bench.scale.name == "quick":
        pytest.skip("not in a quick run")


def model(bench: Bench, shape: Shape) -> tuple[Any, Any]:
    """Config and weights; fp16 where kernels are interpreted, which have no bf16 products there."""
    dtype = bench.pick(torch.bfloat16, torch.float16)
    return load(bench.checkpoint(shape), bench.device, dtype)


@lru_cache(maxsize=1)  # 24 layers take two seconds to load, and a file's rows share them
def load(path: Path, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    from m3fast.checkpoint.config import ModelConfig
    from m3fast.checkpoint.weights import load_weights

    config = ModelConfig.from_dir(path)
    return config, load_weights(path, config, device, dtype)


def runner(bench: Bench, config: Any, weights: Any, graphs: bool = True) -> Any:
    from m3fast.runner.gpu import GpuRunner

    return GpuRunner(config, weights, bench.device, graphs=graphs and bench.device.type == "cuda")


def submits(its: Any, config: Any, outputs: Sequence[str] = OUTPUTS) -> Candidate:
    """A batch is submitted, and its results not yet waited for."""
    from m3fast.runner.base import HeadOptions, Outputs

    options = HeadOptions(config.pooling, True, None, SPECIAL)
    wanted = Outputs(*(name in outputs for name in OUTPUTS))
    return lambda x: its.submit(x.parts, wanted, options)


def judge(config: Any, weights: Any, x: Batch) -> Callable[[str, Any, Any], str]:
    """Holds each output that is there against plain torch's of the same dtype."""
    from m3fast.kernels.reference import sparse_rows_ref, varlen_attention_ref

    def attend(qkv: torch.Tensor) -> torch.Tensor:
        return varlen_attention_ref(qkv, x.ends)

    first = x.ends[:-1].long()
    with torch.inference_mode():
        dense, token_weights, colbert = strong_gpu.encode(
            config, weights, x.ids.long(), x.positions.long(), first, attend, strong_gpu.plain_layer
        )
    real = torch.ones(len(x.ids), dtype=torch.bool, device=x.ids.device)
    real[first] = False  # <s> has no ColBERT vector
    rows = sparse_rows_ref(x.ids.cpu(), token_weights.cpu(), x.ends.cpu(), SPECIAL)
    allowed = WEIGHT * token_weights.max().item()

    def vectors(name: str, expected: torch.Tensor, found: Any) -> str:
        cosine = (torch.as_tensor(found).to(expected) * expected).sum(-1).min().item()
        return "" if cosine >= COSINE else f"a {name} vector has cosine {cosine:.4f}"

    def lexical(found: Any) -> str:
        pairs = zip(rows, found.to_dicts(), strict=True)
        gap = max(abs(a.get(k, 0) - b.get(k, 0)) for a, b in pairs for k in {*a, *b, -1})
        return "" if gap <= allowed else f"a weight is off by {gap:.2g}"

    def differs(name: str, truth: Any, found: Any) -> str:
        if found is None:
            return ""
        if isinstance(found, tuple):  # the strong baseline: tensors of every token
            gap = (found[1] - token_weights).abs().max().item()
            said = ["" if gap <= allowed else f"a weight is off by {gap:.2g}"]
            said += [vectors("dense", dense, found[0]), vectors("colbert", colbert, found[2])]
        else:
            its = found()
            said = ["" if its.dense is None else vectors("dense", dense, its.dense)]
            said.append("" if its.sparse is None else lexical(its.sparse))
            if its.colbert is not None:
                said.append(vectors("colbert", colbert[real], its.colbert))
        return ", ".join(filter(None, said))

    return differs


def linears(bench: Bench, shape: Shape, tokens: int) -> Candidate:
    """The four products of every layer, with their weights read in turn, and nothing else."""
    ops.cuda_only(bench.device)
    make = partial(torch.randn, device=bench.device, dtype=torch.bfloat16)
    sizes = roof.shapes(shape.hidden).values()
    weights = [make(n, k) / 32 for _ in range(shape.layers) for n, k in sizes]
    return strong_gpu.products(torch.mm, weights, tokens)


def engine(bench: Bench, shape: Shape, graphs: bool = True) -> Any:
    """With its graphs captured: in a first run a query's only, as warming up would take longest."""
    dtype, path = bench.pick("bfloat16", "float32"), bench.checkpoint(shape)
    return _engine(path, bench.device, dtype, graphs, bench.scale.name == "first")


@lru_cache(maxsize=2)
def _engine(path: Path, device: torch.device, dtype: str, graphs: bool, query: bool) -> Any:
    from m3fast import Engine
    from m3fast.runner.graphs import Graphs

    its = Engine.from_pretrained(path, device=str(device), dtype=dtype)
    if not graphs:
        its.runner.graphs = Graphs(None)
    elif device.type == "cuda" and query:
        for _ in range(3):  # eagerly, captured, replayed
            its.encode("a query")
    elif device.type == "cuda":
        its.warmup()
    return its


def encodes(its: Any) -> Candidate:
    """All three outputs as numpy; the dense vectors are what is judged."""
    return lambda x: torch.from_numpy(np.atleast_2d(its.encode(x).dense))


def flag_embedding(bench: Bench, shape: Shape) -> Candidate:
    ops.cuda_only(bench.device)
    from FlagEmbedding import BGEM3FlagModel

    path = str(bench.checkpoint(shape))
    its = BGEM3FlagModel(path, use_fp16=False, use_bf16=True, devices=str(bench.device))
    return lambda x: torch.from_numpy(np.atleast_2d(its.encode(x, **encoders.ALL)["dense_vecs"]))


def sentence_transformers(bench: Bench, shape: Shape, attention: str = "sdpa") -> Candidate:
    """Dense vectors only, the one output it has for such a checkpoint."""
    ops.cuda_only(bench.device)
    if attention != "sdpa":
        import flash_attn  # noqa: F401 - without it there is no unpadding
    from sentence_transformers import SentenceTransformer, models

    given = {"dtype": torch.bfloat16, "attn_implementation": attention}
    part = models.Transformer(str(bench.checkpoint(shape)), model_kwargs=given)
    if attention != "sdpa" and not getattr(part, "can_flatten_inputs", False):
        raise Absent("this version pads with flash attention too")
    parts = [part, models.Pooling(shape.hidden, pooling_mode="cls"), models.Normalize()]
    its = SentenceTransformer(modules=parts, device=str(bench.device))
    return lambda x: torch.from_numpy(np.atleast_2d(its.encode(x, batch_size=64)).astype("f4"))


def text_peers(bench: Bench, shape: Shape) -> dict[str, Callable[[], Candidate]]:
    return {
        FLAG: partial(flag_embedding, bench, shape),
        SENTENCE: partial(sentence_transformers, bench, shape),
        UNPADDED: partial(sentence_transformers, bench, shape, "flash_attention_2"),
    }


def same_dense(name: str, truth: torch.Tensor, found: torch.Tensor) -> str:
    if truth.shape != found.shape:
        return f"shape {list(found.shape)}, not {list(truth.shape)}"
    cosine = (found.to(truth) * truth).sum(-1).min().item()
    return "" if cosine >= COSINE else f"a dense vector has cosine {cosine:.4f}"


def strong_peer(
    bench: Bench, config: Any, weights: Any, x: Batch
) -> dict[str, Callable[[], Candidate]]:
    return {STRONG: partial(strong_gpu.compiled, config, weights, x, bench.device)}


def strong_gemm_shares(bench: Bench, weights: Any, tokens: int) -> dict[str, Callable[[], float]]:
    """For `Bench.compare(void=...)`."""
    return {STRONG: partial(strong_gpu.gemm_share, weights, tokens, bench.device, AHEAD)}


def dtype_of(its: Any) -> str:
    """Name of the dtype of weights or of an engine."""
    dtype = its.dtype if hasattr(its, "dtype") else its.word.dtype
    return str(dtype).removeprefix("torch.")
