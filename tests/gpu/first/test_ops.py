"""Each operation in bf16 beside the exact result."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gpu.first.inputs import (
    DIM,
    HALF,
    HEADS,
    NAN,
    TOY,
    WIDTH,
    ends_of,
    owners_of,
    randn,
    unit,
)
from nearness import as_near, plain_attention

from m3fast.kernels import dispatch, reference
from m3fast.kernels.attention import varlen_attention
from m3fast.kernels.gelu import bias_gelu_, linear_gelu
from m3fast.kernels.gpu import maxsim as maxsim_kernels
from m3fast.kernels.gpu.maxsim_config import MaxsimConfig
from m3fast.kernels.layernorm import add_layernorm, add_layernorm_dot, embed_layernorm
from m3fast.kernels.linear import linear
from m3fast.kernels.maxsim import maxsim, quantize_vectors
from m3fast.kernels.normalize import vectors_of_rows, vectors_of_tokens
from m3fast.kernels.sparse import sparse_csr
from m3fast.model.heads import dense_head, pooled_rows, word_rows

EPS = 1e-5
pytestmark = pytest.mark.filterwarnings("error:.*the slower torch path", "error:no CUDA graph")


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
