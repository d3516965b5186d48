"""How MaxSim's kernels cut the work: tiles, passes, workspace, and memory that they leave alone."""

import ctypes
import mmap

import numpy as np
import pytest
import torch
from gpu.maxsim_inputs import TOLERANCE, ends, on, reference, vectors

from m3fast.kernels.maxsim import maxsim, quantize_vectors

launch = pytest.importorskip("m3fast.kernels.gpu.maxsim")
MaxsimConfig = launch.MaxsimConfig
pytestmark = pytest.mark.usefixtures("poisoned_memory", "fast_reduction")


@pytest.mark.parametrize("tma", [False, True])
@pytest.mark.parametrize("tile", [(16, 16, 16), (64, 16, 32), (32, 64, 16)])
def test_tiles(device, rng, gap, dtype, tile, tma):
    if tma and device.type == "cuda" and torch.cuda.get_device_capability(device) < (9, 0):
        pytest.skip("needs compute capability 9.0")
    q_ends, d_ends = ends([17, 3, 14]), ends([1, 20, 0, 15, 64, 9])
    q, d = (vectors(ends[-1], 56, dtype, device) for ends in (q_ends, d_ends))
    offsets = on(device, q_ends, d_ends)
    config = MaxsimConfig(*tile, 4, 2, tma)
    scores = launch.launch_maxsim(q, offsets[0], d, offsets[1], None, config)
    expected = reference(q, q_ends, d, d_ends)
    assert gap(scores, expected) < TOLERANCE[dtype]
    pairs = torch.tensor([[2, 4], [0, 1], [2, 2], [1, 5]], device=device)
    scores = launch.launch_maxsim_pairs(q, offsets[0], d, offsets[1], pairs, 17, None, config)
    assert gap(scores, expected[tuple(pairs.cpu().T)]) < TOLERANCE[dtype]


@pytest.mark.parametrize(
    "lengths",
    [
        [16, 0, 0, 16, 0, 7],
        [0] * 70 + [5, 0, 11] + [0] * 40 + [30] + [0] * 9,
        [15, 1, 0, 1, 15, 16, 0],
        [100],
        [1] * 40 + [0, 2] * 9,
    ],
    ids=["empty at borders", "mostly empty", "ends on a border", "many tiles", "many in a tile"],
)
def test_where_a_tile_begins(device, rng, gap, lengths):
    """Each tile is told its first document, by the host or by the device."""
    q_ends, d_ends = ends([3, 2]), ends(lengths)
    q, d = (vectors(ends[-1], 16, torch.float16, device) for ends in (q_ends, d_ends))
    expected = reference(q, q_ends, d, d_ends)
    tiles = range(0, len(d), 16)
    first = [next(i for i, end in enumerate(d_ends[1:]) if end > row) for row in tiles]
    given = on(device, q_ends, d_ends)
    for where in (d_ends, given[1]):
        found = launch.first_documents(where, len(d), 16)
        assert str(found.dtype).endswith("int64") and found.tolist() == first
    for offsets in ((q_ends, d_ends), given, [x.int() for x in given]):
        config = MaxsimConfig(16, 16, 16, 4, 2)
        scores = launch.launch_maxsim(q, offsets[0], d, offsets[1], None, config)
        assert gap(scores, expected) < 2e-5


def test_tiles_before_and_beyond_all_documents(device, rng, gap):
    """Offsets on the device may begin after row 0, end before the last, or go past it."""
    q, d = (vectors(n, 16, torch.float16, device) for n in (5, 90))
    q_ends, config = ends([5]), MaxsimConfig(16, 16, 16, 4, 2)
    for d_ends in ([40, 41, 41, 60], [89, 90], [0, 0, 0], [0, 33, 90]):
        at = np.array(d_ends, np.int64)
        d_given = at if d_ends[-1] < 90 else np.append(at[:-1], 500)
        given = on(device, q_ends, d_given)
        scores = launch.launch_maxsim(q, given[0], d, given[1], None, config)
        assert gap(scores, reference(q, q_ends, d, at)) < 2e-5
    (given,) = on(device, np.array([0, 9]))
    assert launch.first_documents(given, 90, 32).tolist() == [0, 1, 1]


def test_the_reduction(device, rng, monkeypatch):
    monkeypatch.undo()
    q, d = (vectors(n, 16, torch.float32, device) for n in (2, 7))
    d[1, 0] = float("nan")
    offsets = on(device, ends([2]), ends([3, 4]))
    config = MaxsimConfig(16, 16, 16, 4, 2)
    scores = launch.launch_maxsim(q, offsets[0], d, offsets[1], None, config)
    assert scores[0, 0].isnan()
    torch.testing.assert_close(scores[0, 1], (q @ d[3:].T).amax(1).mean())


def test_queries_in_several_passes(device, rng, gap, monkeypatch):
    """A query's tokens may fall into two passes, or none of them into the first."""
    monkeypatch.setattr(launch, "SLICE", 32)
    q_ends, d_ends = ends([20, 30, 0, 15]), ends([9, 0, 30])
    q, d = (vectors(ends[-1], 24, torch.float32, device) for ends in (q_ends, d_ends))
    assert gap(maxsim(q, q_ends, d, d_ends), reference(q, q_ends, d, d_ends)) < 2e-6


@pytest.mark.parametrize(
    ("tokens", "docs", "at_once"),
    [(1, 1, 32), (2048, 1, 2048), (2049, 1, 1056), (100, 10**6, 64), (3000, 10**9, 32)],
)
def test_the_workspace_is_bounded(tokens, docs, at_once):
    """256 MiB, or 32 query tokens where documents are so many; passes are of equal size."""
    assert launch.tokens_at_once(tokens, docs) == at_once


def test_padding_and_wrong_offsets_on_the_device(device, gap, rng):
    """Rows beyond the last offset count for nothing; offsets out of range reach no other memory."""
    q, d = (vectors(n, 16, torch.float16, device) for n in (5, 90))
    d[50:] = float("nan")
    q_ends, d_ends = ends([3, 2]), ends([30, 20])
    expected = reference(q, q_ends, d[:50], d_ends)
    padded = on(device, ends([0, 3, 2]), ends([30, 20, 0, 0]))
    scores = launch.launch_maxsim(q, padded[0], d, padded[1])
    assert gap(scores[1:, :2], expected) < 2e-5
    assert not scores[:1].any() and not scores[:, 2:].any()
    pairs = torch.tensor([[2, 1], [0, 0], [1, 3], [-1, 0], [3, 0], [0, -1], [0, 4]], device=device)
    scores = launch.launch_maxsim_pairs(q, padded[0], d, padded[1], pairs, 5)
    assert gap(scores[:3], torch.stack([expected[1, 1], *torch.zeros(2)])) < 2e-5
    assert scores[3:].isnan().all()
    wild = on(device, np.array([-(10**9), 10**9, -5, 7]), np.array([0, 10**9, -(10**9), 200]))
    launch.launch_maxsim(q, wild[0], d, wild[1])
    launch.launch_maxsim_pairs(q, wild[0], d, wild[1], pairs, 5)


def guarded(x, front):
    """A copy whose first byte, or last, lies beside a page that must not be touched."""
    size = -(-x.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, size + 2 * mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (start, start + mmap.PAGESIZE + size):
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(page), mmap.PAGESIZE, 0) == 0
    offset = mmap.PAGESIZE + (0 if front else size - x.nbytes)
    copy = torch.frombuffer(memory, dtype=x.dtype, count=x.numel(), offset=offset)
    return copy.copy_(x.reshape(-1)).view(x.shape)


@pytest.mark.parametrize("front", [False, True])
@pytest.mark.parametrize("kind", [torch.float16, torch.int8], ids=str)
def test_no_other_memory_is_read(device, rng, kind, front):
    """A read beside a matrix or an index is a crash here."""
    if device.type == "cuda":
        pytest.skip("compute-sanitizer's matter")
    q, d = (vectors(n, 17, torch.float16, device) for n in (5, 90))
    d, scales = quantize_vectors(d) if kind == torch.int8 else (d, None)
    scales = scales if scales is None else guarded(scales, front)
    q, d, q_ends, d_ends, pairs = (
        guarded(x, front)
        for x in (q, d, *on(device, ends([3, 2]), ends([30, 60])), torch.tensor([[-1, 0], [1, 1]]))
    )
    assert not launch.launch_maxsim(q, q_ends, d, d_ends, scales).isnan().any()
    scores = launch.launch_maxsim_pairs(q, q_ends, d, d_ends, pairs, 3, scales)
    assert scores.isnan().tolist() == [True, False]
    for wrong in ([-9, 3, 400], [400, -9, 3]):
        offsets = guarded(torch.tensor(wrong), front)
        launch.launch_maxsim(q, offsets, d, offsets, scales)
        launch.launch_maxsim_pairs(q, offsets, d, offsets, pairs, len(q), scales)
