import ctypes
import mmap
from itertools import pairwise

import numpy as np
import pytest
import torch

from m3fast.kernels.gpu.sparse import SparseConfig, candidates, launch_sparse_csr
from m3fast.kernels.reference import sparse_csr_ref, sparse_rows_ref
from m3fast.kernels.sparse import csr_views, sparse_csr

NAN = float("nan")
SPECIAL = (0, 1, 2, 3)
LENGTHS = [1, 2, 31, 33, 63, 65, 129]


def fenced(tensor, before=False):
    """A copy that ends, or begins, where readable memory does: a step beyond it is a crash."""
    if tensor.is_cuda:
        return tensor.clone()
    page = mmap.PAGESIZE
    room = max(-(-tensor.nbytes // page), 1) * page
    memory = mmap.mmap(-1, room + 2 * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for at in (start, start + page + room):
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(at), ctypes.c_size_t(page), 0) == 0
    offset = page + (0 if before else room - tensor.nbytes)
    count = tensor.numel()
    if not count:
        return tensor.clone()
    return torch.frombuffer(memory, dtype=tensor.dtype, count=count, offset=offset).copy_(tensor)


class Batch:
    """Random texts; `spare` tokens and `room` texts pad it as a graph bucket is padded."""

    def __init__(self, rng, device, lengths, vocab=50, spare=0, room=0):
        self.lengths = list(lengths)
        total = sum(self.lengths)
        self.ends = np.concatenate([[0], np.cumsum(self.lengths), [total] * room]).astype(np.int32)
        n_texts = len(self.ends) - 1
        ids = rng.integers(0, vocab, total)
        weights = rng.random(total).round(2) - 0.3  # equal ones, zeros and negative ones too
        weights[rng.random(total) < 0.05] = NAN
        weights[rng.random(total) < 0.02] = np.inf
        # What pads it would be kept, were it a text's.
        arrays = (
            np.concatenate([ids, np.full(spare, 7)]).astype(np.int32),
            np.concatenate([weights, np.ones(spare)]).astype(np.float32),
            self.ends,
            np.concatenate(
                [
                    np.repeat(np.arange(len(self.lengths)), self.lengths),
                    rng.choice([0, n_texts, max(len(self.lengths) - 1, 0)], spare),
                ]
            ).astype(np.int32),
        )
        self.args = tuple(fenced(torch.from_numpy(a).to(device)) for a in arrays)
        self.tokens, self.n_texts = total + spare, n_texts

    def expected(self, dropped, sort):
        rows = sparse_rows_ref(*(t.cpu() for t in self.args[:3]), dropped)
        return [sorted(row.items()) if sort else list(row.items()) for row in rows]

    def out(self, device):
        words = self.n_texts + 1 + 2 * self.tokens
        return fenced(torch.full((words,), -(2**31), dtype=torch.int32, device=device))


def rows(indptr, indices, values):
    ends = indptr.tolist()
    assert ends[0] == 0
    # Nothing beyond the last row is looked at.
    pairs = list(zip(indices[: ends[-1]].tolist(), values[: ends[-1]].tolist(), strict=True))
    return [pairs[a:b] for a, b in pairwise(ends)]


def check(batch, device, dropped=SPECIAL, config=None):
    for sort in (False, True):
        out = batch.out(device)
        launch_sparse_csr(*batch.args, dropped, sort, out, config)
        views = csr_views(out, batch.tokens, batch.n_texts)
        assert rows(*views) == batch.expected(dropped, sort)
        count = int(views[0][-1])
        assert (views[1][count:] == -(2**31)).all()  # not even junk beyond the last row


@pytest.mark.parametrize("config", [None, SparseConfig(16, 16, 1), SparseConfig(32, 64, 1)])
def test_lengths(device, rng, config):
    for length in LENGTHS:
        check(Batch(rng, device, [length], vocab=20), device, config=config)
    check(Batch(rng, device, rng.permutation(LENGTHS)), device, config=config)


@pytest.mark.parametrize("rows_", [16, 128])
def test_many_texts(device, rng, rows_):
    """More than the 32 texts that one step writes, in one block and over blocks."""
    config = SparseConfig(rows_, 32, 4)
    check(Batch(rng, device, [1] * 200, vocab=6), device, config=config)
    check(Batch(rng, device, rng.integers(0, 4, 150), vocab=8), device, config=config)


def test_empty_texts(device, rng):
    for lengths in ([0, 5, 0, 0, 3], [0] * 70 + [40] + [0] * 70, [64, 0, 64, 0], [16, 0]):
        check(Batch(rng, device, lengths), device, config=SparseConfig(16, 16, 1))


def test_many_blocks(device, rng):
    """More than the eight times `rows` whose counts one step adds up."""
    batch = Batch(rng, device, [3] * 700, vocab=9)
    out = batch.out(device)
    launch_sparse_csr(*batch.args, SPECIAL, False, out, SparseConfig(16, 16, 1))
    found = rows(*csr_views(out, batch.tokens, batch.n_texts))
    assert found == batch.expected(SPECIAL, False)


@pytest.mark.parametrize("lengths", [[5, 9, 2], [40, 60], [16], [15, 1], [0, 3], []])
def test_bucket(device, rng, lengths):
    """Tokens beyond the texts are no text's, texts beyond the last are empty."""
    for spare in (1, 16, 50):
        check(Batch(rng, device, lengths, spare=spare, room=40), device)
        check(
            Batch(rng, device, lengths, spare=spare, room=1), device,
            config=SparseConfig(16, 16, 1),
        )  # fmt: skip


def literal(device, words, weights, lengths=None):
    ends = np.cumsum([0, *(lengths or [len(words)])]).astype(np.int32)
    texts = np.repeat(np.arange(len(ends) - 1), np.diff(ends)).astype(np.int32)
    arrays = (np.array(words, np.int32), np.array(weights, np.float32), ends, texts)
    return tuple(torch.from_numpy(a).to(device) for a in arrays)


def test_literal(device):
    """Special tokens, repeats, zero, negative and NaN weights; the same id in two texts."""
    words = [0, 9, 8, 9, 7, 7, 2, 0, 8, 9, 6, 6, 2]
    weights = [1, 0, 0.5, 0.25, NAN, 0.5, 1, 1, 2, -1, NAN, 0, 1]
    args = literal(device, words, weights, [7, 6])
    found = rows(*sparse_csr(*args, SPECIAL))
    inf = float("inf")  # what a NaN counts as
    assert found == [[(8, 0.5), (9, 0.25), (7, inf)], [(8, 2.0), (6, inf)]]
    found = rows(*sparse_csr(*args, [], sort=True))
    assert found == [[(0, 1.0), (2, 1.0), (7, inf), (8, 0.5), (9, 0.25)],
                     [(0, 1.0), (2, 1.0), (6, inf), (8, 2.0)]]  # fmt: skip
    assert rows(*sparse_csr(*literal(device, [5, 4, 5], [0, 1, 2]), ())) == [[(4, 1.0), (5, 2.0)]]


def test_extreme_weights_and_ids(device):
    tiny, low, high = 2.0**-149, -(2**31), 2**31 - 1
    args = literal(device, [high, low, -1, high, 0], [tiny, 3e38, float("inf"), 0, -0.0])
    expected = [(high, tiny), (low, float(np.float32(3e38))), (-1, float("inf"))]
    assert rows(*sparse_csr(*args, [])) == [expected]
    assert rows(*sparse_csr(*args, [], sort=True)) == [sorted(expected)]
    assert rows(*sparse_csr(*args, [-1, high])) == [expected[1:2]]


def test_nan_stays_in_its_text(device, rng):
    batch = Batch(rng, device, [20, 30, 25])
    expected = batch.expected(SPECIAL, False)
    batch.args[1][20:50] = NAN
    found = rows(*sparse_csr(*batch.args, SPECIAL))
    assert [found[0], found[2]] == [expected[0], expected[2]]
    assert found[1] and {w for _, w in found[1]} == {float("inf")}


def test_arguments(device, rng):
    batch = Batch(rng, device, [30, 40])
    fresh = sparse_csr(*batch.args, SPECIAL)
    assert [t.dtype for t in fresh] == [torch.int32, torch.int32, torch.float32]
    assert [len(t) for t in fresh] == [3, 70, 70]
    out = torch.empty(144, dtype=torch.int32, device=device)[1:]  # not at a multiple of 16 bytes
    into = sparse_csr(*batch.args, np.array(SPECIAL), out=out)
    assert into[0].data_ptr() == out.data_ptr()
    assert rows(*into) == rows(*fresh)
    assert rows(*csr_views(out.clone().cpu(), 70, 2)) == rows(*fresh)
    with pytest.raises(ValueError, match=r"out: shape \[141\] was expected, got \[143\]"):
        csr_views(out, 69, 2)


def test_no_tokens_or_texts(device, rng):
    for lengths, spare in (([], 0), ([0, 0], 0), ([], 5)):
        batch = Batch(rng, device, lengths, spare=spare)
        out = batch.out(device)
        indptr, indices, values = sparse_csr(*batch.args, SPECIAL, out=out)
        assert indptr.tolist() == [0] * (len(lengths) + 1)
        assert len(indices) == len(values) == spare


BROKEN = [
    *(("cu_seqlens", 3, end) for end in (-5, 41, 2**31 - 1)),
    ("cu_seqlens", 0, -7),
    ("cu_seqlens", 1, 2**31 - 1),
    ("cu_seqlens", 2, -(2**31)),
    *(("texts", 0, text) for text in (-5, 40)),
    *(("texts", 15, text) for text in (-5, 40, 2**31 - 1)),
    *(("texts", 16, text) for text in (-(2**31), 2**31 - 1)),
    *(("texts", 39, text) for text in (-5, 3, 40)),
]


@pytest.mark.parametrize(("name", "at", "value"), BROKEN)
def test_broken_promises_stay_inside(device, rng, name, at, value):
    """Offsets or texts that do not fit: nothing beyond the tensors is touched."""
    batch = Batch(rng, device, [20, 7, 13])
    batch.args[{"cu_seqlens": 2, "texts": 3}[name]][at] = value
    for before in (False, True):
        args = [fenced(t, before) for t in batch.args]
        out = fenced(batch.out(device), before)
        launch_sparse_csr(*args, SPECIAL, True, out, SparseConfig(16, 16, 1))
        if out.is_cuda:  # where a bad address is an error that comes later
            torch.cuda.synchronize(device)


def test_wrong_arguments(device, rng):
    ids, weights, ends, texts = Batch(rng, device, [3, 4]).args
    with pytest.raises(TypeError, match=r"ids: dtype torch.int32 was expected, got torch.int64"):
        sparse_csr(ids.long(), weights, ends, texts, SPECIAL)
    with pytest.raises(TypeError, match=r"weights: dtype torch.float32"):
        sparse_csr(ids, weights.half(), ends, texts, SPECIAL)
    with pytest.raises(ValueError, match=r"weights: shape \[7\] was expected, got \[6\]"):
        sparse_csr(ids, weights[1:], ends, texts, SPECIAL)
    with pytest.raises(ValueError, match=r"texts: shape \[7\] was expected, got \[6\]"):
        sparse_csr(ids, weights, ends, texts[1:], SPECIAL)
    with pytest.raises(ValueError, match=r"cu_seqlens: shape \[N \+ 1\] was expected, got \[0\]"):
        sparse_csr(ids, weights, ends[:0], texts, SPECIAL)
    with pytest.raises(TypeError, match="dropped: a sequence of ints was expected, got Tensor"):
        sparse_csr(ids, weights, ends, texts, torch.tensor(SPECIAL))
    with pytest.raises(ValueError, match=r"out: shape \[17\] was expected, got \[16\]"):
        sparse_csr(ids, weights, ends, texts, SPECIAL, out=ids.new_empty(16))
    with pytest.raises(ValueError, match="texts: device"):
        sparse_csr(ids, weights, ends, texts.to("meta"), SPECIAL)


@pytest.mark.parametrize("sort", [False, True])
def test_torch_path(device, rng, monkeypatch, sort):
    monkeypatch.setattr("m3fast.kernels.dispatch", lambda device: "a test says so")
    monkeypatch.setattr("m3fast.kernels.dispatch", set())
    batch = Batch(rng, device, [30, 0, 40, 65], spare=9, room=2)
    with pytest.warns(RuntimeWarning, match="sparse_csr: the slower torch path"):
        found = sparse_csr(*batch.args, SPECIAL, sort=sort, out=batch.out(device))
    assert rows(*found) == batch.expected(SPECIAL, sort)


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", [[8192] * 3, [180] * 556, [20] * 5000, [100_000]])
def test_full_size(device, rng, lengths):
    batch = Batch(rng, device, lengths, vocab=250_002)
    for sort in (False, True):
        expected = sparse_csr_ref(*batch.args, SPECIAL, sort)
        for config in [None, *candidates(90)[::3]]:
            out = batch.out(device)
            launch_sparse_csr(*batch.args, SPECIAL, sort, out, config)
            found = csr_views(out, batch.tokens, batch.n_texts)
            count = int(found[0][-1])
            assert torch.equal(found[0], expected[0])
            assert torch.equal(found[1][:count], expected[1][:count])
            assert torch.equal(found[2][:count], expected[2][:count])


@pytest.mark.gpu
def test_in_a_graph(device, rng):
    batch = Batch(rng, device, [30, 70], spare=28, room=3)
    out = batch.out(device)
    sparse_csr(*batch.args, SPECIAL, out=out)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        sparse_csr(*batch.args, SPECIAL, out=out)
    other = Batch(rng, device, [50, 1, 9], spare=68, room=2)
    for to, new in zip(batch.args, other.args, strict=True):
        to.copy_(new)
    out.fill_(-1)
    graph.replay()
    assert rows(*csr_views(out, 128, 5)) == other.expected(SPECIAL, False)
