import numpy as np
import pytest
import torch

from m3fast.kernels.normalize import vectors_of_rows, vectors_of_tokens
from m3fast.kernels.reference import vectors_of_rows_ref, vectors_of_tokens_ref

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Of values up to 1: a GPU divides to within two units in the last place, and the norm has its own.
UNIT = 5e-7


def ragged(lengths, device):
    """texts int32 [T] and cu_seqlens int32 [N + 1]."""
    cu = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    texts = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    return torch.from_numpy(texts).to(device), torch.from_numpy(cu).to(device)


def poisoned(rows, cols, device):
    return torch.full((rows, cols), float("nan"), device=device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("width", "dim"), [(1024, None), (40, 7), (1, 5), (1100, 1090)])
def test_rows(device, rng, gap, dtype, width, dim):
    x = (torch.randn(50, width) * 3).to(device, dtype)
    rows = torch.from_numpy(rng.integers(0, 50, 9)).to(device)
    for normalize in (True, False):
        for picked in (rows, None):
            out = poisoned(9 if picked is rows else 50, min(width, dim or width), device)
            found = vectors_of_rows(x, picked, normalize, dim, out=out)
            assert found is out
            exact = vectors_of_rows_ref(x.double(), picked, normalize, dim)
            assert gap(out, exact) <= (UNIT if normalize else 0)
            assert torch.equal(out, vectors_of_rows(x, picked, normalize, dim))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tokens(device, rng, gap, dtype):
    lengths = [1, 2, 31, 33, 2]
    texts, cu = ragged(lengths, device)
    x = torch.randn(len(texts), 72).to(device, dtype)
    for normalize, dim in ((True, None), (False, 24), (True, 24)):
        exact = vectors_of_tokens_ref(x.double(), texts, cu, normalize, dim)
        found = vectors_of_tokens(x, texts, cu, normalize, dim)
        assert found.shape == (len(texts) - len(lengths), dim or 72)
        assert gap(found, exact) <= (UNIT if normalize else 0)


def test_tokens_of_a_padded_bucket(device, rng, gap):
    """Empty texts at the end, tokens of no text, more room than rows."""
    texts, cu = ragged([4, 2, 9, 0, 0], device)
    x = torch.randn(20, 16, device=device)
    owners = torch.cat([texts, torch.full((5,), 5, dtype=torch.int32, device=device)])
    out = poisoned(20, 16, device)
    vectors_of_tokens(x, owners, cu, True, out=out)
    assert gap(out[:12], vectors_of_tokens_ref(x, owners, cu, True)) <= UNIT
    assert out[12:].isnan().all()


def test_zeros_and_nan(device):
    x = torch.zeros(3, 8, device=device)
    x[1] = float("nan")
    out = vectors_of_rows(x, None, True)
    assert out[1].isnan().all() and (out[[0, 2]] == 0).all()


def test_tiny_norms(device, gap):
    x = torch.tensor([[3e-13, 4e-13], [3e-12, 4e-12], [3e-10, 4e-10]], device=device)
    expected = torch.tensor([[0.3, 0.4], [0.6, 0.8], [0.6, 0.8]])
    assert gap(vectors_of_rows(x, None, True), expected) < 1e-6


def test_broken_promises_write_nowhere_else(device):
    """Fewer rows than tokens need, and tokens of texts that do not exist."""
    texts, cu = ragged([9], device)
    x = torch.ones(9, 4, device=device)
    room = poisoned(9, 4, device)
    vectors_of_tokens(x, texts, cu, False, out=room[:5])
    assert (room[:5] == 1).all() and room[5:].isnan().all()
    texts[8], texts[5] = -1, 7
    room = poisoned(9, 4, device)
    vectors_of_tokens(x, texts, cu, False, out=room)
    assert room.isnan().all(1).nonzero().view(-1).tolist() == [4, 7, 8]


def test_nothing(device):
    x, none = torch.zeros(0, 8, device=device), torch.zeros(0, dtype=torch.int64, device=device)
    assert vectors_of_rows(x, None, True).shape == (0, 8)
    assert vectors_of_rows(torch.zeros(4, 8, device=device), none, True, 3).shape == (0, 3)
    texts, cu = ragged([0, 0], device)
    assert vectors_of_tokens(x, texts, cu, True).shape == (0, 8)


def test_bad_arguments(device):
    x = torch.zeros(4, 8, device=device)
    texts, cu = ragged([4], device)
    rows = torch.zeros(2, dtype=torch.int64, device=device)
    of_rows, of_tokens = vectors_of_rows, vectors_of_tokens
    for call, error, name in [
        (lambda: of_rows(x.long(), rows, True), TypeError, "x: expected dtype"),
        (lambda: of_rows(x, rows.int(), True), TypeError, "rows: expected dtype"),
        (lambda: of_rows(x, rows, True, 0), ValueError, "dim: expected at least 1"),
        (lambda: of_rows(x, rows, True, out=x), ValueError, r"out: expected shape \[2, 8\]"),
        (lambda: of_rows(x, rows, True, out=x.half()[:2]), TypeError, "out: expected dtype"),
        (lambda: of_tokens(x, texts[:3], cu, True), ValueError, r"texts: expected shape \[4\]"),
        (lambda: of_tokens(x, texts.long(), cu, True), TypeError, "texts: expected dtype"),
        (lambda: of_tokens(x, texts, cu[:0], True), ValueError, "cu_seqlens: expected at least"),
    ]:
        with pytest.raises(error, match=name):
            call()
