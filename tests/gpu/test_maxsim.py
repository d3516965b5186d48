"""MaxSim's scores on the GPU path: dtypes, pairs, 8-bit documents, NaN, layouts."""

import numpy as np
import pytest
import torch
from gpu.maxsim_inputs import EIGHT_BITS, TOLERANCE, ends, reference, skip_float8, vectors

from m3fast.kernels.maxsim import maxsim, quantize_vectors

launch = pytest.importorskip("m3fast.kernels.gpu.maxsim")
pytestmark = pytest.mark.usefixtures("poisoned_memory", "fast_reduction")
LENGTHS = [1, 2, 31, 33, 0, 63, 65, 129, 0]


@pytest.mark.parametrize("dim", [1, 8, 40, 128])
def test_all_pairs(device, rng, gap, dtype, dim):
    q_ends, d_ends = ends([5, 0, 1, 29]), ends(rng.permutation(LENGTHS))
    q, d = (vectors(ends[-1], dim, dtype, device) for ends in (q_ends, d_ends))
    scores = maxsim(q, q_ends, d, d_ends)
    assert (scores.dtype, scores.device.type) == (torch.float32, device.type)
    assert gap(scores, reference(q, q_ends, d, d_ends)) < TOLERANCE[dtype]


@pytest.mark.parametrize("tokens", [9, 33, 70])
def test_wide_vectors(device, rng, gap, tokens):
    """The three classes of tiles; a document on both sides of a tile's end."""
    q_ends, d_ends = ends([2, tokens - 2]), ends([rng.integers(100, 128), 40, 7])
    q, d = (vectors(ends[-1], 1024, torch.float16, device) for ends in (q_ends, d_ends))
    expected = reference(q, q_ends, d, d_ends)
    assert gap(maxsim(q, q_ends, d, d_ends), expected) < 2e-5
    scores = maxsim(q, q_ends, d, d_ends, np.array([[1, 0], [0, 2]]))
    assert gap(scores, expected[[1, 0], [0, 2]]) < 2e-5


@pytest.mark.parametrize("programs", [1, 30])
def test_pairs(device, rng, gap, monkeypatch, dtype, programs):
    """Documents whole or split among programs, and pairs in several passes."""
    monkeypatch.setattr(launch, "PROGRAMS", programs)
    q_ends, d_ends = ends([*rng.integers(1, 9, 3), 0, 40]), ends([*rng.integers(1, 40, 4), 0, 200])
    q, d = (vectors(ends[-1], 33, dtype, device) for ends in (q_ends, d_ends))
    pairs = np.stack([rng.integers(0, 5, 7), rng.integers(0, 6, 7)], 1)
    pairs = np.concatenate([pairs, pairs[:2], [[4, 5]]])
    expected = reference(q, q_ends, d, d_ends)[pairs[:, 0], pairs[:, 1]]
    assert gap(maxsim(q, q_ends, d, d_ends, pairs), expected) < TOLERANCE[dtype]
    assert maxsim(q, q_ends, d, d_ends, pairs[:0]).shape == (0,)
    monkeypatch.setattr(launch, "WORKSPACE", 3 * 40)
    scores = maxsim(q, q_ends, d, d_ends, torch.from_numpy(pairs))
    assert gap(scores, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("kind", EIGHT_BITS, ids=str)
def test_quantized(device, rng, gap, kind, dtype):
    skip_float8(kind, device)
    q_ends, d_ends = ends([5, 3]), ends([1, 40, 0, 17, 100])
    q = vectors(8, 48, dtype, device)
    values, scales = quantize_vectors(vectors(d_ends[-1], 48, torch.float32, device), kind)
    if device.type == "cpu" and dtype == torch.float32:
        pytest.skip("would be rounded to bf16")
    used = q.bfloat16() if dtype == torch.float32 else q
    expected = reference(used, q_ends, values.float() * scales[:, None], d_ends)
    scores = maxsim(q, q_ends, values, d_ends, doc_scales=scales)
    assert gap(scores, expected) < 2e-5
    pairs = np.array([[1, 4], [0, 2], [0, 1]])
    scores = maxsim(q, q_ends, values, d_ends, pairs, doc_scales=scales)
    assert gap(scores, expected[pairs[:, 0], pairs[:, 1]]) < 2e-5


@pytest.mark.parametrize("kind", EIGHT_BITS, ids=str)
def test_every_byte(device, kind, dtype):
    skip_float8(kind, device)
    if device.type == "cpu" and dtype == torch.float32:
        pytest.skip("would be rounded to bf16")
    byte = torch.arange(256, dtype=torch.uint8)
    if kind == torch.float8_e4m3fn and device.type == "cpu":
        byte[byte % 128 == 127] = 1  # the interpreter reads this NaN as 480
    d = byte.view(kind)[:, None]
    scales = torch.full((256,), 0.5)
    ones = torch.ones(1, 1, dtype=dtype, device=device)
    found = maxsim(ones, ends([1]), d.to(device), np.arange(257), doc_scales=scales.to(device))
    expected = d[:, 0].float() / 2
    torch.testing.assert_close(found[0].cpu(), expected, rtol=0, atol=0, equal_nan=True)


def test_every_half(device):
    """Each fp16 number comes through as it is: subnormal ones, infinities and NaN too."""
    step = 1 if device.type == "cuda" else 97
    d = torch.arange(0, 1 << 16, step).to(torch.uint16).view(torch.float16)[:, None].to(device)
    one = torch.ones(1, 1, dtype=torch.float16, device=device)
    found = maxsim(one, ends([1]), d, np.arange(len(d) + 1))
    torch.testing.assert_close(found[0], d[:, 0].float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("row", [0, 5, 69])
def test_a_nan_is_neither_forgotten_nor_spread(device, rng, dtype, row, sign):
    d = vectors(140, 10, dtype, device)
    d[row, 3] = torch.copysign(torch.tensor(float("nan")), torch.tensor(sign))
    q = vectors(3, 10, dtype, device)
    assert maxsim(q, ends([3]), d, ends([70, 70])).isnan().tolist() == [[True, False]]
    pairs = np.array([[0, 1], [0, 0]])
    assert maxsim(q, ends([3]), d, ends([70, 70]), pairs).isnan().tolist() == [False, True]
    q[0] = float("nan")
    scores = maxsim(q, ends([1, 2]), d[70:], ends([70]))
    assert scores.isnan().tolist() == [[True], [False]]


def test_all_products_below_zero(device, dtype):
    """No document row is made up: a best product of -1 stays -1, one of -inf stays -inf."""
    q, d = torch.ones(1, 4, device=device), -torch.ones(5, 4, device=device) / 4
    d[3:] = -float("inf")
    scores = maxsim(q.to(dtype), ends([1]), d.to(dtype), ends([3, 2]))
    assert scores.tolist() == [[-1, -float("inf")]]
    scores = maxsim(q.to(dtype), ends([1]), d.to(dtype), ends([3, 2]), np.array([[0, 1], [0, 0]]))
    assert scores.tolist() == [-float("inf"), -1]


def test_layouts(device, rng, gap):
    """Documents are read where they lie, rows apart; queries of another dtype are rounded."""
    q_ends, d_ends = ends([4, 5]), ends([20, 3])
    q = vectors(9, 40, torch.float32, device)
    store = vectors(23, 96, torch.float16, device)
    for d in (store[:, :40], store[:, 3:43]):
        scores = maxsim(q, q_ends, d, d_ends)
        assert gap(scores, reference(q.half(), q_ends, d, d_ends)) < 2e-5
    d = store[:, :80:2]
    with pytest.warns(RuntimeWarning, match="document row are 2 apart"):
        scores = maxsim(q, q_ends, d, d_ends)
    assert gap(scores, reference(q, q_ends, d, d_ends)) < 2e-6


def test_top_k(device, rng):
    q, d = (vectors(n, 16, torch.float16, device) for n in (5, 60))
    q_ends, d_ends = ends([3, 2]), ends([10] * 6)
    scores = maxsim(q, q_ends, d, d_ends)
    best, places = maxsim(q, q_ends, d, d_ends, top_k=2)
    assert torch.equal(best, scores.sort(1, descending=True).values[:, :2])
    assert torch.equal(scores.gather(1, places), best)
    assert maxsim(q, q_ends, d, d_ends, top_k=9)[0].shape == (2, 6)


def test_empty(device, dtype):
    none = torch.empty(0, 4, dtype=dtype, device=device)
    rows = torch.ones(3, 4, dtype=dtype, device=device)
    assert maxsim(none, ends([]), none, ends([])).shape == (0, 0)
    assert maxsim(none, ends([0, 0]), rows, ends([3])).tolist() == [[0.0], [0.0]]
    assert maxsim(rows, ends([3]), none, ends([0]), np.array([[0, 0]])).tolist() == [0.0]
    no_width = torch.empty(3, 0, dtype=dtype, device=device)
    assert maxsim(no_width, ends([3]), no_width, ends([1, 2])).tolist() == [[0.0, 0.0]]


def test_same_bits(device, rng):
    q, d = (vectors(n, 32, torch.float16, device) for n in (40, 150))
    q_ends, d_ends = ends([30, 10]), ends([150])
    first = maxsim(q, q_ends, d, d_ends)
    assert all(torch.equal(first, maxsim(q, q_ends, d, d_ends)) for _ in range(2))
