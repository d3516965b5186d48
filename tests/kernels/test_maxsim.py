import numpy as np
import pytest
import torch

from m3fast.kernels.maxsim import maxsim, quantize_vectors
from m3fast.kernels.reference import maxsim_ref


def float64(q, q_ends, d, d_ends):
    out = np.zeros((len(q_ends) - 1, len(d_ends) - 1))
    products = q.double().numpy() @ d.double().numpy().T
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            block = products[q_ends[i] : q_ends[i + 1], d_ends[j] : d_ends[j + 1]]
            out[i, j] = block.max(1).mean() if block.size else 0.0
    return out


def ends(lengths, dtype=np.int64):
    return np.concatenate([[0], np.cumsum(lengths)]).astype(dtype)


def vectors(rows, dim):
    return torch.nn.functional.normalize(torch.randn(rows, dim), dim=1)


@pytest.mark.parametrize("dim", [1, 33, 128, 1024])
def test_fp32(path, rng, gap, dim):
    q_ends, d_ends = ends([32, 1, 0, 17, 33]), ends([1, 2, 31, 33, 0, 63, 64, 65, 129, 300])
    q, d = vectors(q_ends[-1], dim), vectors(d_ends[-1], dim)
    expected = float64(q, q_ends, d, d_ends)
    scores = maxsim(q, q_ends, d, d_ends)
    assert scores.dtype == torch.float32
    assert gap(scores, expected) < 1e-6
    reference = maxsim_ref(q, torch.from_numpy(q_ends), d, torch.from_numpy(d_ends))
    assert gap(scores, reference) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_documents(path, rng, gap, dtype):
    q_ends, d_ends = ends([8, 3], np.int32), ends([5, 70, 20], np.int32)
    q, d = vectors(11, 100), vectors(95, 100).to(dtype)
    expected = float64(q, q_ends, d, d_ends)
    assert gap(maxsim(q, torch.from_numpy(q_ends), d, torch.from_numpy(d_ends)), expected) < 1e-6
    narrow = maxsim(q.to(dtype), q_ends, d, d_ends)
    assert gap(narrow, float64(q.to(dtype), q_ends, d, d_ends)) < 1e-6


def test_every_half(path):
    """Each fp16 number comes through as it is: subnormal ones, infinities and NaN too."""
    d = torch.arange(1 << 16).to(torch.uint16).view(torch.float16)[:, None]
    found = maxsim(torch.ones(1, 1), ends([1]), d, np.arange(len(d) + 1))
    torch.testing.assert_close(found[0], d[:, 0].float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("row", [0, 5, 69])
def test_a_nan_is_not_forgotten(path, rng, row):
    d_ends, d = ends([70, 70]), vectors(140, 10)
    d[row, 3] = float("nan")
    assert maxsim(vectors(3, 10), ends([3]), d, d_ends).isnan().tolist() == [[True, False]]


def test_all_products_below_zero(path):
    """No document row is made up: a best product of -1 stays -1."""
    q, d = torch.ones(1, 4), -torch.ones(3, 4) / 4
    assert maxsim(q, ends([1]), d, ends([3])).item() == -1


def test_more_query_tokens_than_fit_a_block(path, rng, gap):
    q_ends, d_ends = ends([300, 300, 700, 5]), ends([40, 3])
    q, d = vectors(1305, 24), vectors(43, 24)
    assert gap(maxsim(q, q_ends, d, d_ends), float64(q, q_ends, d, d_ends)) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_pairs(path, rng, gap, dtype):
    q_ends, d_ends = ends(rng.integers(0, 40, 7)), ends(rng.integers(0, 60, 9))
    q, d = vectors(q_ends[-1], 65), vectors(d_ends[-1], 65).to(dtype)
    pairs = np.stack([rng.integers(0, 7, 30), rng.integers(0, 9, 30)], 1)
    expected = float64(q, q_ends, d, d_ends)[pairs[:, 0], pairs[:, 1]]
    scores = maxsim(q, q_ends, d, d_ends, pairs)
    assert scores.dtype == torch.float32
    assert gap(scores, expected) < 1e-6
    assert maxsim(q, q_ends, d, d_ends, pairs[:0]).shape == (0,)


def test_empty(path):
    none = torch.empty(0, 4)
    assert maxsim(none, ends([]), none, ends([])).shape == (0, 0)
    scores = maxsim(none, ends([0, 0]), torch.ones(3, 4), ends([3]))
    assert scores.tolist() == [[0.0], [0.0]]


def test_same_bits(path, rng, same_bits):
    q_ends, d_ends = ends([32, 20]), ends(rng.integers(1, 100, 40))
    q, d = vectors(52, 128), vectors(d_ends[-1], 128)
    if path == "torch":
        pytest.skip("torch's own matter")
    same_bits(lambda: maxsim(q, q_ends, d, d_ends))
    pairs = np.stack([rng.integers(0, 2, 60), rng.integers(0, 40, 60)], 1)
    same_bits(lambda: maxsim(q, q_ends, d, d_ends, pairs))
    whole = maxsim(q, q_ends, d, d_ends)
    chosen = maxsim(q, q_ends, d, d_ends, pairs)
    assert torch.equal(chosen, whole[pairs[:, 0], pairs[:, 1]])


@pytest.mark.parametrize(("dtype", "top"), [(torch.int8, 127), (torch.float8_e4m3fn, 448)])
def test_quantize(rng, dtype, top):
    x = torch.randn(50, 33)
    values, scales = quantize_vectors(x, dtype)
    assert (values.dtype, scales.dtype, scales.shape) == (dtype, torch.float32, (50,))
    torch.testing.assert_close(scales.double(), x.double().abs().amax(1) / top)
    assert values.float().abs().amax(1).eq(top).all()
    steps = x.double() / scales.double()[:, None]
    if dtype == torch.int8:
        assert (values.double() - steps).abs().max() < 0.5 + 1e-5
    else:  # three bits after the first, and 2^-9 where numbers are subnormal
        off = (values.double() - steps).abs()
        assert (off <= steps.abs() / 16 + 2.0**-10 + 1e-6).all()


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantize_extremes(dtype):
    x = torch.tensor([[0.0, 0], [1e-44, 0], [3e38, -1], [float("nan"), 1], [float("inf"), 1]])
    values, scales = quantize_vectors(x, dtype)
    wide = values.float() * scales[:, None]
    assert wide[:2].abs().max() <= 1e-44
    torch.testing.assert_close(wide[2, 0], x[2, 0])
    assert wide[3:].isnan().all()
    assert quantize_vectors(x.half()[:, :0])[0].shape == (5, 0)
    assert quantize_vectors(x.bfloat16()[:0])[1].shape == (0,)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantized_documents(path, rng, gap, dtype):
    q_ends, d_ends = ends([8, 0, 3]), ends([5, 70, 0, 20])
    q, (d, scales) = vectors(11, 100), quantize_vectors(vectors(95, 100), dtype)
    expected = float64(q, q_ends, d.double() * scales.double()[:, None], d_ends)
    assert gap(maxsim(q, q_ends, d, d_ends, doc_scales=scales), expected) < 1e-6
    pairs = np.array([[2, 1], [0, 3], [1, 0], [0, 2]])
    scores = maxsim(q, q_ends, d, d_ends, pairs, doc_scales=scales)
    assert gap(scores, expected[pairs[:, 0], pairs[:, 1]]) < 1e-6


def test_top_k(path, rng):
    q_ends, d_ends = ends([3, 2]), ends([10] * 6)
    q, d = vectors(5, 16), vectors(60, 16)
    scores = maxsim(q, q_ends, d, d_ends)
    best, places = maxsim(q, q_ends, d, d_ends, top_k=2)
    assert torch.equal(best, scores.sort(1, descending=True).values[:, :2])
    assert torch.equal(scores.gather(1, places), best)
    assert maxsim(q, q_ends, d, d_ends, top_k=9)[0].shape == (2, 6)
    pairs = torch.tensor([[0, 1], [1, 2], [0, 3]])
    best, places = maxsim(q, q_ends, d, d_ends, pairs, top_k=1)
    # Of the pairs' own scores: torch's product of one pair rounds in its own way.
    own = maxsim(q, q_ends, d, d_ends, pairs)
    assert torch.equal(best, own.max(0, keepdim=True).values)
    assert torch.allclose(own, scores[tuple(pairs.T)], atol=1e-6)
    assert places.shape == (1,)


def test_bad_arguments(path):
    q, d = torch.zeros(2, 4), torch.zeros(3, 4)
    q_ends, d_ends = ends([2]), ends([3])
    with pytest.raises(TypeError, match="queries: expected dtype"):
        maxsim(q.double(), q_ends, d, d_ends)
    with pytest.raises(TypeError, match=r"docs: expected a torch\.Tensor"):
        maxsim(q, q_ends, d.numpy(), d_ends)
    with pytest.raises(ValueError, match=r"docs: expected shape \[3, 4\], found \[3, 5\]"):
        maxsim(q, q_ends, torch.zeros(3, 5), d_ends)
    with pytest.raises(ValueError, match="q_offsets: expected a last entry of 2"):
        maxsim(q, d_ends, d, d_ends)
    with pytest.raises(ValueError, match="d_offsets: expected ascending"):
        maxsim(q, q_ends, d, np.array([0, 4, 3]))
    with pytest.raises(TypeError, match="d_offsets: expected dtype int64"):
        maxsim(q, q_ends, d, np.array([0.0, 3.0]))
    with pytest.raises(ValueError, match="pairs: expected queries below 1 and documents below 1"):
        maxsim(q, q_ends, d, d_ends, np.array([[0, 1]]))
    with pytest.raises(TypeError, match=r"pairs: expected dtype torch\.int64"):
        maxsim(q, q_ends, d, d_ends, torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"pairs: expected shape \[1, 2\]"):
        maxsim(q, q_ends, d, d_ends, torch.zeros(1, 3, dtype=torch.int64))
    for wrong in (0, -1, 1.0):
        with pytest.raises(ValueError, match="top_k: expected a number from 1 on"):
            maxsim(q, q_ends, d, d_ends, top_k=wrong)
    with pytest.raises(ValueError, match="doc_scales: expected None"):
        maxsim(q, q_ends, d, d_ends, doc_scales=torch.ones(3))
    values, scales = quantize_vectors(d)
    with pytest.raises(ValueError, match=r"doc_scales: expected fp32 \[3\]"):
        maxsim(q, q_ends, values, d_ends)
    with pytest.raises(TypeError, match=r"doc_scales: expected dtype torch\.float32"):
        maxsim(q, q_ends, values, d_ends, doc_scales=scales.double())
    with pytest.raises(ValueError, match=r"doc_scales: expected shape \[3\], found \[2\]"):
        maxsim(q, q_ends, values, d_ends, doc_scales=scales[:2])
    with pytest.raises(TypeError, match=r"dtype: expected torch\.int8 or torch\.float8_e4m3fn"):
        quantize_vectors(d, torch.uint8)
    with pytest.raises(TypeError, match="x: expected dtype"):
        quantize_vectors(values)
