"""What a first run on a GPU begins with: a quick look at everything, one process per class.

    TestOps       each op in bf16 beside the exact result
    TestCuda      the CUDA C++ kernels, bit for bit
    TestTma       loads by TMA beside loads by pointers, bit for bit
    TestCapture   the engine with CUDA graphs beside one without, bit for bit
    TestEngine    the whole engine at BGE-M3's width beside the CPU's

What needs no GPU also runs interpreted, at toy sizes and in fp16.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from checkpoints import make_checkpoint
from nearness import as_near, off, plain_attention, same

from m3fast import Engine
from m3fast.kernels import dispatch, native, reference
from m3fast.kernels.attention import attention_tiles, varlen_attention
from m3fast.kernels.gelu import bias_gelu_, linear_gelu
from m3fast.kernels.gpu import attention as attention_kernels
from m3fast.kernels.gpu import maxsim as maxsim_kernels
from m3fast.kernels.gpu import maxsim_config
from m3fast.kernels.gpu.attention import AttentionConfig
from m3fast.kernels.gpu.maxsim_config import MaxsimConfig
from m3fast.kernels.layernorm import add_layernorm, add_layernorm_dot, embed_layernorm
from m3fast.kernels.linear import linear
from m3fast.kernels.maxsim import maxsim, quantize_vectors
from m3fast.kernels.normalize import vectors_of_rows, vectors_of_tokens
from m3fast.kernels.padding import pack_rows, pad_rows, unpad
from m3fast.kernels.sparse import sparse_csr
from m3fast.model.heads import dense_head, pooled_rows, word_rows
from m3fast.runner.gpu import GpuRunner
from m3fast.types import Embeddings

TOY = os.environ.get("TRITON_INTERPRET") == "1"
HALF = torch.float16 if TOY else torch.bfloat16  # the interpreter's bf16 products are garbage
HEADS, DIM, WIDTH = (2, 16, 32) if TOY else (16, 64, 1024)
EPS, NAN = 1e-5, float("nan")
pytestmark = pytest.mark.filterwarnings("error:.*the slower torch path", "error:no CUDA graph")


def randn(device, *shape, dtype=HALF):
    return torch.randn(shape, device=device).to(dtype)


def unit(device, *shape, dtype=HALF):
    return F.normalize(torch.randn(shape, device=device), dim=-1).to(dtype)


def ends_of(lengths, dtype=np.int32):
    return np.concatenate([[0], np.cumsum(lengths)]).astype(dtype)


def owners_of(lengths, device):
    return torch.from_numpy(np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)).to(device)


def random_ids(rng, lengths, vocab=20_000):
    return [[0, *rng.integers(4, vocab, n - 2).tolist(), 2] for n in lengths]


def same_bits(found, expected):
    assert found.isfinite().all(), f"{int((~found.isfinite()).sum())} values are not finite"
    apart = (found.double() - expected.double()).abs()
    assert torch.equal(found, expected), (
        f"{int((apart > 0).sum())} of {apart.numel()} values differ, by up to {apart.max():.3g}"
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    return make_checkpoint(folder, hidden=128, heads=2, ffn=256, layers=2, positions=2050)


@pytest.fixture(scope="module")
def big(tmp_path_factory) -> Callable[[int], Path]:
    """A checkpoint of BGE-M3's width with so many layers, made once."""

    @functools.cache
    def made(layers: int) -> Path:
        folder = tmp_path_factory.mktemp("big")
        return make_checkpoint(
            folder, hidden=1024, heads=16, ffn=4096, positions=8194, layers=layers, deep=layers > 2
        )

    return made


class TestOps:
    @pytest.mark.parametrize("longest", [32, 64, 128, 130 if TOY else 1030])
    def test_attention(self, device, rng, longest):
        lengths = [1, 0, 31, 33, 2] if TOY else [1, 2, 0, 17, 31, 33, 63, 65, 127, 129, 300, 64, 32]
        lengths = [*rng.permutation([n for n in lengths if n < longest]), longest, 0]
        ends = ends_of(lengths)
        qkv = randn(device, ends[-1], 3, HEADS, DIM)
        out = torch.full((ends[-1], HEADS * DIM), NAN, dtype=HALF, device=device)
        varlen_attention(qkv, ends, longest, out=out)
        exact = reference.varlen_attention_ref(qkv.double(), torch.from_numpy(ends))
        as_near(out, exact, plain_attention(qkv, ends), ends)

    @pytest.mark.parametrize("tokens", [1, 7] if TOY else [1, 33, 2500])
    def test_add_layernorm(self, device, rng, tokens):
        x, residual = randn(device, tokens, WIDTH) + 3, randn(device, tokens, WIDTH)
        bias, weight, shift, head = (randn(device, WIDTH) for _ in range(4))
        norm = (weight, shift, EPS)
        wide = (x.double(), residual.double(), bias.double(), weight.double(), shift.double(), EPS)
        exact = reference.add_layernorm_ref(*wide)
        plain = F.layer_norm(x + bias + residual, (WIDTH,), *norm)
        as_near(add_layernorm(x, residual, bias, *norm), exact, plain)
        without = reference.add_layernorm_ref(*wide[:2], None, *wide[3:])
        plain_without = F.layer_norm(x + residual, (WIDTH,), *norm)
        as_near(add_layernorm(x, residual, None, *norm), without, plain_without)
        # The product is that of the rounded rows: fp32 sums only are between it and the exact one.
        middle = -(exact @ head.double()).median().to(HALF)[None]
        out, weights = add_layernorm_dot(x, residual, bias, *norm, head, middle)
        as_near(out, exact, plain)
        dots = torch.relu(out.double() @ head.double() + middle.double())
        assert (weights.double() - dots).abs().max() <= 1e-5 * WIDTH**0.5
        assert tokens == 1 or ((weights == 0).any() and (weights > 0).any())

    def test_embed_layernorm(self, device, rng):
        words, places, tokens = (50, 20, 6) if TOY else (250_002, 8194, 300)
        ids, positions = (
            torch.from_numpy(rng.integers(0, n, tokens, dtype=np.int32)).to(device)
            for n in (words, places)
        )
        ids[:2], positions[:2] = torch.tensor([0, words - 1]), torch.tensor([places - 1, 0])
        tables = [randn(device, n, WIDTH) for n in (words, places)]
        rest = [randn(device, WIDTH) for _ in range(3)]
        args = (*tables, *rest)
        out = embed_layernorm(ids, positions, *args, EPS, check_ids=False)
        rows = [table[i.long()] for table, i in zip(tables, (ids, positions), strict=True)]
        every = torch.arange(tokens, device=device)
        wide = (t.double() for t in (*rows, *rest))
        exact = reference.embed_layernorm_ref(every, every, *wide, EPS)
        plain = F.layer_norm(rows[0] + rows[1] + rest[0], (WIDTH,), *rest[1:], EPS)
        as_near(out, exact, plain)

    def test_gelu(self, device, rng):
        for tokens in (1, 33):
            x, bias = randn(device, tokens, 4 * WIDTH) * 3, randn(device, 4 * WIDTH)
            exact = reference.bias_gelu_ref(x.double(), bias.double())
            # Each by its own size: a fault for small values would hide beside the large ones.
            rounding = torch.finfo(HALF).eps / 2 * exact.abs()
            bias_gelu_(x, bias)
            assert ((x - exact).abs() <= rounding + 2e-6).all()

    @pytest.mark.parametrize(("depth", "outs"), [(1, 3), (1, 4), (4, 1)])
    def test_linear(self, device, rng, depth, outs):
        x = randn(device, 33, depth * WIDTH)
        weight = randn(device, outs * WIDTH, depth * WIDTH) * (depth * WIDTH) ** -0.5
        bias = randn(device, outs * WIDTH)
        exact = reference.linear_ref(x.double(), weight.double(), bias.double())
        as_near(linear(x, weight, bias), exact, exact.to(HALF))
        plain = F.gelu(F.linear(x, weight, bias))
        product = reference.linear_ref(x.double(), weight.double())
        as_near(
            linear_gelu(x, weight, bias), reference.bias_gelu_ref(product, bias.double()), plain
        )

    def test_normalize(self, device, rng):
        lengths = [1, 2, 9, 0] if TOY else [1, 2, 31, 300, 65, 1, 0, 0]
        ends, owners = torch.from_numpy(ends_of(lengths)).to(device), owners_of(lengths, device)
        x = randn(device, len(owners), WIDTH) * 3
        rows = torch.from_numpy(rng.permutation(len(x))[:3]).to(device)
        for given, dim in ((rows, None), (None, WIDTH // 3)):
            found = vectors_of_rows(x, given, True, dim)
            exact = reference.vectors_of_rows_ref(x.double(), given, True, dim)
            assert (found - exact).abs().max() <= 5e-7  # four units in the last place of fp32
        out = torch.full((len(x), WIDTH), NAN, device=device)
        vectors_of_tokens(x, owners, ends, True, out=out)
        exact = reference.vectors_of_tokens_ref(x.double(), owners, ends, True)
        assert (out[: len(exact)] - exact).abs().max() <= 5e-7
        assert out[len(exact) :].isnan().all()

    @pytest.mark.parametrize("sort", [False, True])
    def test_sparse(self, device, rng, sort):
        lengths = [1, 0, 33, 5, 0] if TOY else [1, 0, 33, 129, 2, 8192, 64, 0]
        ends, total = torch.from_numpy(ends_of(lengths)).to(device), sum(lengths)
        ids = torch.from_numpy(rng.choice([20, 250_002], total) * rng.random(total)).int()
        weights = torch.from_numpy(rng.random(total).round(2) - 0.3).float()
        weights[::17], weights[::23] = NAN, float("inf")
        given = (ids.to(device), weights.to(device), ends, owners_of(lengths, device))
        indptr, indices, values = (x.cpu() for x in sparse_csr(*given, (0, 1, 2, 3), sort=sort))
        rows = reference.sparse_rows_ref(ids, weights, ends.cpu(), (0, 1, 2, 3))
        pairs = [sorted(row.items()) if sort else list(row.items()) for row in rows]
        assert indptr.tolist() == ends_of([len(row) for row in pairs]).tolist()
        count = int(indptr[-1])
        found = list(zip(indices[:count].tolist(), values[:count].tolist(), strict=True))
        assert found == [pair for row in pairs for pair in row]

    @pytest.mark.parametrize(
        ("kind", "lengths"),
        [
            (HALF, [20, 0, 1, 11]),
            (HALF, [33, 31]),
            (HALF, [64, 40, 1]),
            (torch.int8, [20, 11]),
            (torch.float8_e4m3fn, [20, 11]),
        ],
        ids=str,
    )
    def test_maxsim(self, device, rng, monkeypatch, kind, lengths):
        """At most 32 query tokens, at most 64, and more: tiles of their own each."""
        if kind == torch.float8_e4m3fn and not TOY and dispatch.arch(device) < 89:
            pytest.skip("float8 documents need compute capability 8.9")
        if TOY:  # which reduces larger tiles cell by cell, in Python
            config = MaxsimConfig(16, 16, 16, 4, 2)
            monkeypatch.setattr(maxsim_kernels, "config_for", lambda *_: config)
            monkeypatch.setattr(maxsim_kernels, "PROGRAMS", 1)
        rows = [1, 0, 17, 3] if TOY else [1, 300, 0, 63, 180, 1000, 2, 0]
        q_ends, d_ends = ends_of(lengths, np.int64), ends_of(rows, np.int64)
        queries, docs = unit(device, q_ends[-1], WIDTH), unit(device, d_ends[-1], WIDTH)
        scales = None
        exact = docs.double()
        if kind != HALF:
            docs, scales = quantize_vectors(docs, kind)
            exact = docs.double() * scales.double()[:, None]
        q_from, d_from = (torch.from_numpy(ends) for ends in (q_ends, d_ends))
        expected = reference.maxsim_ref(queries.double(), q_from, exact, d_from)
        # Unit vectors, exact as they are: what differs are sums in fp32.
        scores = maxsim(queries, q_ends, docs, d_ends, doc_scales=scales)
        assert (scores - expected).abs().max() <= 2e-5
        if sum(lengths) <= 32:
            pairs = np.stack([rng.integers(0, n, 9) for n in expected.shape], 1)
            scores = maxsim(queries, q_ends, docs, d_ends, pairs, doc_scales=scales)
            assert (scores - expected[pairs[:, 0], pairs[:, 1]]).abs().max() <= 2e-5

    @pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn], ids=str)
    def test_quantize(self, device, rng, kind):
        x = randn(device, 70, WIDTH)
        x[3], x[5, 1] = 0, NAN
        values, scales = quantize_vectors(x, kind)
        assert scales[5].isnan() and not values[5].float().any()
        x[5], scales[5] = 0, 1
        # Half a step of int8; of float8 half a unit in the last of four places, or of its least.
        step = 0.5 * scales if kind == torch.int8 else 2**-10 * scales
        bound = step[:, None] + (0 if kind == torch.int8 else 2**-4) * x.double().abs()
        assert ((values.float() * scales[:, None] - x.double()).abs() <= 1.00001 * bound).all()
        greatest = 127 if kind == torch.int8 else 448
        assert (values.float().abs().amax(1)[:3] == greatest).all()

    @pytest.mark.parametrize("pooling", ["cls", "last_token", "mean", "mcls"])
    def test_heads(self, device, rng, pooling):
        """Rows that stand for a text and rows that become its vectors, found on the device."""
        lengths = [300, 1, 256, 600, 2]
        spans = list(zip(ends_of(lengths)[:-1], ends_of(lengths)[1:], strict=True))
        ends = ends_of([*lengths, 0, 0])  # two texts and ten tokens that fill up a bucket
        total = int(ends[-1]) + 10
        owners = torch.cat([owners_of(lengths, device), torch.full((10,), 7).int().to(device)])
        at, hidden = torch.from_numpy(ends).to(device), randn(device, total, WIDTH)
        most = len(lengths) + 2 + total // 256
        taken = {
            "cls": lambda a, b: [a],
            "last_token": lambda a, b: [b - 1],
            "mean": lambda a, b: range(a, b),
            "mcls": lambda a, b: range(a, b, 256),
        }[pooling]
        rows = pooled_rows(at, pooling, total, most)
        found = dense_head(hidden, rows, at, pooling, True, None)[: len(lengths)]
        wide = hidden.double()
        means = torch.stack([wide[list(taken(a, b))].mean(0) for a, b in spans])
        assert (found - F.normalize(means, dim=1)).abs().max() <= 2e-6
        if pooling == "mcls":
            kept = [t for a, b in spans for t in range(a, b) if (t - a) % 256]
            words = word_rows(owners, at, pooling, total)
            assert words is not None and words[: len(kept)].tolist() == kept


@pytest.mark.gpu
class TestCuda:
    """Also that they run at all: torch, which computes the same, would say nothing."""

    @pytest.fixture(autouse=True)
    def _extension(self, device):
        assert native.why_no_cuda(device) == ""

    @pytest.mark.parametrize("shape", [(70, 20), (300, 5), (3, 1200)], ids=str)
    def test_unpad(self, device, rng, shape):
        for ids_as in (torch.int32, torch.int64):
            for mask_as in (torch.bool, torch.uint8, torch.int32, torch.int64):
                ids = torch.from_numpy(rng.integers(0, 6, shape)).to(ids_as)
                mask = torch.from_numpy(rng.random(shape) < rng.random((shape[0], 1))).to(mask_as)
                mask[0], mask[-1] = 0, 1
                for pad in (1, None):
                    for total in (None, int((mask != 0).sum()), 7):
                        capacity = mask.numel() if total is None else total
                        found = unpad(ids.to(device), mask.to(device), pad, total=total)
                        expected = reference.unpad_ref(ids, mask, pad, capacity)
                        for a, b in zip(found, expected, strict=True):
                            assert torch.equal(a.cpu(), b)

    @pytest.mark.parametrize("channels", [1024, 513, 1])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int8], ids=str)
    def test_rows(self, device, rng, dtype, channels):
        """Copied 16 bytes, 4 bytes and 1 byte at a time."""
        mask = torch.from_numpy(rng.random((9, 130)) < 0.6).to(device)
        ids = torch.full((9, 130), 5, device=device)
        hidden = torch.randint(-99, 99, (9, 130, channels), device=device).to(dtype)
        for total in (mask.numel(), int(mask.sum()), int(mask.sum()) // 2):
            slots = unpad(ids, mask, 1, total=total).slots
            packed = pack_rows(hidden, slots, total)
            assert torch.equal(packed, reference.pack_rows_ref(hidden, slots, total))
            assert torch.equal(pad_rows(packed, slots), reference.pad_rows_ref(packed, slots))


class TestTma:
    """Launch after launch with tensors of its own, and so with descriptors of its own."""

    @pytest.fixture(autouse=True)
    def _has_tma(self, device):
        if not TOY and dispatch.arch(device) // 10 != 9:
            pytest.skip("the configs with TMA are those of compute capability 9.0")

    def plan(self, ends, config, device):
        tiles = torch.from_numpy(attention_tiles(ends, config.short, config.rows)).to(device)
        return tiles, owners_of(np.diff(ends), device)

    def attention(self, qkv, plan, config):
        out = qkv.new_full((len(qkv), qkv.shape[2] * qkv.shape[3]), NAN)
        attention_kernels.launch_attention(qkv, *plan, qkv.shape[3] ** -0.5, out, config)
        return out

    def maxsim(self, given, config):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(maxsim_kernels, "config_for", lambda *_: config)
            return maxsim(*given[:4], doc_scales=given[4])

    @pytest.mark.parametrize("dim", [16] if TOY else [32, 64, 128])
    def test_attention(self, device, rng, dim):
        config = AttentionConfig(16, 32, 16, 4, 2, tma=True)
        if not TOY:
            config = attention_kernels.default_config(90, HALF, dim, "longer")
        assert config.tma
        results = []
        for turn in range(1 if TOY else 12):  # nothing waits for the device in between
            lengths = [70, 17, 40] if TOY else [*rng.integers(1, 900, 5 + turn), 65]
            ends = ends_of(lengths)
            qkv, plan = randn(device, ends[-1], 3, HEADS, dim), self.plan(ends, config, device)
            configs = (config, replace(config, tma=False))
            results.append([self.attention(qkv, plan, each) for each in configs])
        for found, expected in results:
            same_bits(found, expected)

    @pytest.mark.parametrize("tokens", [20] if TOY else [32, 64, 200])
    @pytest.mark.parametrize("kind", [HALF, torch.int8, torch.float8_e4m3fn], ids=str)
    def test_maxsim(self, device, rng, kind, tokens):
        config = MaxsimConfig(32, 16, 16, 4, 2, tma=True)
        if not TOY:
            config = maxsim_config.default_config(90, tokens, kind, tma=True)
        results = []
        for _ in range(1 if TOY else 6):
            given = self.vectors(device, rng, kind, tokens, [5, 0, 40] if TOY else None)
            configs = (config, replace(config, tma=False))
            results.append([self.maxsim(given, each) for each in configs])
        for found, expected in results:
            same_bits(found, expected)

    def vectors(self, device, rng, kind, tokens, rows=None):
        rows = [*rng.integers(0, 700, 9), 1] if rows is None else rows
        q_ends, d_ends = (
            torch.from_numpy(ends_of(x, np.int64)).to(device) for x in ([tokens - 1, 1], rows)
        )
        docs, scales = unit(device, sum(rows), WIDTH), None
        if kind != HALF:
            docs, scales = quantize_vectors(docs, kind)
        return unit(device, tokens, WIDTH), q_ends, docs, d_ends, scales

    @pytest.mark.gpu
    def test_in_a_graph(self, device, rng):
        """Descriptors that a graph holds, and launches beside it after each replay."""
        config = attention_kernels.default_config(90, HALF, DIM, "longer")
        rows = maxsim_config.default_config(90, 32, HALF, tma=True)
        pointers = replace(config, tma=False), replace(rows, tma=False)
        assert config.tma and rows.tma
        plan, other = (
            self.plan(ends_of(lengths), config, device) for lengths in ([200, 129, 700], [300, 66])
        )
        qkv = randn(device, 1029, 3, HEADS, DIM)
        given = self.vectors(device, rng, HALF, 32)

        def work(attention, late):
            return self.attention(qkv, plan, attention), self.maxsim(given, late)

        work(config, rows)
        torch.cuda.synchronize(device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = work(config, rows)
        for _ in range(5):
            qkv.copy_(randn(device, *qkv.shape))
            given[2].copy_(unit(device, *given[2].shape))
            graph.replay()
            fresh = randn(device, 366, 3, HEADS, DIM)
            after = [self.attention(fresh, other, each) for each in (config, pointers[0])]
            for a, b in zip(found, work(*pointers), strict=True):
                same_bits(a, b)
            same_bits(*after)


@pytest.mark.gpu
class TestCapture:
    @pytest.mark.parametrize("pooling", ["cls", "mean", "mcls"])
    def test_graphs_equal_eager(self, small, rng, monkeypatch, device, pooling):
        replayed = []
        replay = torch.cuda.CUDAGraph.replay

        def counted(graph):
            replayed.append(graph)
            replay(graph)

        monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", counted)
        graphed, eager = (
            Engine.from_pretrained(small, device=str(device), pooling=pooling) for _ in range(2)
        )
        runner = eager.runner
        eager.runners = [GpuRunner(eager.config, runner.weights, eager.device, graphs=False)]
        # One bucket each, of 32 to 2,048 tokens.
        for lengths in ([5, 20], [2] * 30, [300], [700, 33, 40], [900, 800, 5, 300]):
            graphs, replays = len(graphed.runner.graphs), len(replayed)
            for _ in range(4):  # eagerly, captured, replayed twice, each with ids of its own
                ids = random_ids(rng, lengths)
                same(eager.encode(ids), graphed.encode(ids), 0.0)
            assert len(graphed.runner.graphs) == graphs + 1, lengths
            assert len(replayed) >= replays + 2, lengths
        assert len(eager.runner.graphs) == 0


@pytest.mark.gpu
class TestEngine:
    """bf16 on the GPU is as near to fp32 as bf16 on the CPU, twice over, text by text."""

    def judge(self, ours: Embeddings, rough: Embeddings, exact: Embeddings) -> None:
        for i in range(len(exact)):
            for name in ("dense", "colbert"):
                o, r, e = (getattr(x, name)[i] for x in (ours, rough, exact))
                assert o.shape == e.shape and np.isfinite(o).all()
                assert off(o, e) <= 2 * off(r, e), (
                    f"{name} of text {i}, {exact.n_tokens[i]} tokens: off by {off(o, e):.3g}, "
                    f"the CPU's bf16 by {off(r, e):.3g}"
                )
        # An id that one of them leaves out has weight 0 there, and then is near 0 elsewhere.
        rows = [x.sparse.to_dicts() for x in (ours, rough, exact)]
        where = [(i, word) for i, each in enumerate(zip(*rows, strict=True))
                 for word in sorted(set().union(*each))]  # fmt: skip
        o, r, e = (np.array([row[i].get(word, 0.0) for i, word in where]) for row in rows)
        assert (e > 0).sum() >= len(where) / 2 >= len(exact)
        assert off(o, e) <= 2 * off(r, e)
        assert abs(o - e).max() <= 3 * abs(r - e).max()

    @pytest.mark.parametrize("layers", [2, 24])
    def test_equals_the_cpu(self, big, rng, device, layers):
        """At 2 layers more tokens than the largest graph, at 24 few: a CPU has to keep up."""
        few = [2, 3, 17, 33, 64, 130]
        batches = [few] if layers > 2 else [few, [*rng.integers(2, 600, 25), 1500, 2100]]
        batches = [random_ids(rng, lengths) for lengths in batches]
        found = []
        for on, dtype in (("cpu", "float32"), ("cpu", "bfloat16"), (str(device), "bfloat16")):
            with Engine.from_pretrained(big(layers), device=on, dtype=dtype) as engine:
                found.append([engine.encode(ids) for ids in batches])
                if on != "cpu":
                    assert isinstance(engine.runner, GpuRunner)
                    # Again, as graphs are captured and replayed; other launches, the same rows.
                    found += [[engine.encode(ids) for ids in batches] for _ in range(2)]
        exact, rough, *ours = found
        for each in ours:
            for three in zip(each, rough, exact, strict=True):
                self.judge(*three)

    def test_hidden_states(self, big, rng, device):
        """Padded in, padded out: on the GPU the CUDA C++ kernels are on the way."""
        ids = torch.from_numpy(rng.integers(4, 20_000, (5, 150)))
        mask = torch.arange(150) < torch.tensor([150, 3, 1, 64, 149])[:, None]
        ids[~mask] = 1
        states = []
        for on, dtype in (("cpu", "float32"), ("cpu", "bfloat16"), (str(device), "bfloat16")):
            with Engine.from_pretrained(big(2), device=on, dtype=dtype) as engine:
                states.append(engine.hidden_states(ids.to(on), mask.to(on)).float().cpu())
        exact, rough, ours = states
        assert (ours[~mask] == 0).all()
        for i, row in enumerate(mask):
            o, r, e = (x[i][row].numpy() for x in (ours, rough, exact))
            assert off(o, e) <= 2 * off(r, e), f"row {i}"
