import ctypes
import mmap
from itertools import pairwise

import numpy as np
import pytest
import torch

from m3fast.kernels import maxsim as op
from m3fast.kernels.maxsim import maxsim, quantize_vectors
from m3fast.kernels.reference import maxsim_ref

launch = pytest.importorskip("m3fast.kernels.gpu.maxsim")
MaxsimConfig = launch.MaxsimConfig

# Of unit vectors, whose products are summed in fp32: far below the roundings of half precision.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-5, torch.bfloat16: 2e-5}
LENGTHS = [1, 2, 31, 33, 0, 63, 65, 129, 0]
EIGHT_BITS = [torch.int8, torch.float8_e4m3fn]


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    empty = torch.empty

    def poisoned(*sizes, **options):
        made = empty(*sizes, **options)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.fixture(autouse=True)
def _fast_reduction(device, monkeypatch):
    """The interpreter combines element by element, in Python, where it does not know the function.

    `test_the_reduction` does without this.
    """
    if device.type == "cuda":
        return
    from triton.runtime.interpreter import ReduceOps

    slow = ReduceOps.apply_impl

    def fast(self, x):
        known = self.combine_fn is launch._greater
        return self.min_max(x[0], val_reduce_op=np.max) if known else slow(self, x)

    monkeypatch.setattr(ReduceOps, "apply_impl", fast)


def ends(lengths):
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def vectors(rows, dim, dtype, device):
    return torch.nn.functional.normalize(torch.randn(rows, dim), dim=1).to(device, dtype)


def reference(q, q_ends, d, d_ends):
    offsets = (torch.from_numpy(q_ends), torch.from_numpy(d_ends))
    return maxsim_ref(q.cpu().float(), offsets[0], d.cpu().float(), offsets[1])


def on(device, *arrays):
    return [torch.from_numpy(a).to(device) for a in arrays]


def skip_float8(dtype, device):
    if dtype == torch.float8_e4m3fn and device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if (major, minor) < (8, 9):
            pytest.skip("needs compute capability 8.9")


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
        found = launch.first_documents(where, len(d), 16, device)
        assert found.dtype == torch.int32 and found.tolist() == first
    for host in (d_ends, None):
        config = MaxsimConfig(16, 16, 16, 4, 2)
        scores = launch.launch_maxsim(q, given[0], d, given[1], None, config, host)
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
    assert launch.first_documents(given, 90, 32, device).tolist() == [0, 1, 1]


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


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, *EIGHT_BITS], ids=str)
@pytest.mark.parametrize("tokens", [32, 64, 2500])
def test_full_size(device, rng, gap, kind, tokens):
    """At d = 1024, with the tiles that ship; against float64 rounded once."""
    skip_float8(kind, device)
    lengths = np.full(tokens // 20, 20)
    q_ends = ends([*lengths, tokens - lengths.sum()])
    d_ends = ends([*rng.integers(1, 600, 60), 8192, 1, 0])
    d = vectors(d_ends[-1], 1024, torch.float32, device)
    q = vectors(tokens, 1024, torch.float16 if kind == torch.int8 else torch.bfloat16, device)
    d, scales = quantize_vectors(d, kind) if kind in EIGHT_BITS else (d.to(kind), None)
    q = q if scales is not None else q.to(kind)
    wide = d.double() if scales is None else d.double() * scales.double()[:, None]
    best = [
        (q.double() @ wide[a:b].T).amax(1) if a < b else q.new_zeros(tokens, dtype=torch.float64)
        for a, b in pairwise(d_ends)
    ]
    products = torch.stack(best, 1)
    expected = torch.stack(
        [
            products[a:b].mean(0) if a < b else products.new_zeros(len(best))
            for a, b in pairwise(q_ends)
        ]
    )
    scores = maxsim(q, q_ends, d, d_ends, doc_scales=scales)
    assert gap(scores, expected) < 2e-5
    pairs = np.stack([rng.integers(0, len(q_ends) - 1, 99), rng.integers(0, len(best), 99)], 1)
    scores = maxsim(q, q_ends, d, d_ends, pairs, doc_scales=scales)
    assert gap(scores, expected[pairs[:, 0], pairs[:, 1]]) < 2e-5


@pytest.mark.gpu
def test_no_call_waits(device, rng):
    """torch refuses to wait for the device, wherever offsets and pairs are."""
    q, d = (vectors(n, 128, torch.float16, device) for n in (40, 900))
    host = [ends([30, 10]), ends([400, 100, 400]), np.array([[0, 2], [1, 1]])]
    there = on(device, *host)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for q_ends, d_ends, pairs in (host, there):
            maxsim(q, q_ends, d, d_ends, top_k=2)
            maxsim(q, q_ends, d, d_ends, pairs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_in_a_graph(device, rng):
    """With offsets and pairs on the device nothing waits for it, so a graph can hold the call."""
    q, d = (vectors(n, 128, torch.float16, device) for n in (40, 900))
    q_ends, d_ends = on(device, ends([30, 10]), ends([400, 100, 400]))
    pairs = torch.tensor([[0, 2], [1, 1]], device=device)

    def run():
        return maxsim(q, q_ends, d, d_ends), maxsim(q, q_ends, d, d_ends, pairs)

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run()
    d.copy_(vectors(900, 128, torch.float16, device))
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(found, run(), strict=True))


@pytest.mark.gpu
def test_no_shape_compiles_anew(device, rng, monkeypatch):
    import triton

    def call(tokens, rows, pairs):
        q_ends, d_ends = ends([tokens]), ends([rows])
        q, d = (vectors(n, 128, torch.bfloat16, device) for n in (tokens, rows))
        maxsim(q, q_ends, d, d_ends)
        maxsim(q, q_ends, d, d_ends, np.zeros((pairs, 2), np.int64))

    for tokens in (1, 16, 33, 65, 2049):
        call(tokens, 16, 1)
    compiled = []
    monkeypatch.setattr(
        triton.knobs.runtime,
        "jit_post_compile_hook",
        lambda **found: compiled.append(found["repr"]),
    )
    for _ in range(100):
        call(*(int(rng.integers(1, top)) for top in (3000, 5000, 600)))
    assert not compiled


@pytest.mark.gpu
def test_float8_on_an_older_gpu(device, monkeypatch):
    monkeypatch.setattr(op.triton_path, "arch", lambda _: 80)
    values, scales = quantize_vectors(torch.ones(3, 16, device=device), torch.float8_e4m3fn)
    q = torch.ones(1, 16, device=device)
    with pytest.warns(RuntimeWarning, match=r"compute capability 8\.9"):
        assert maxsim(q, ends([1]), values, ends([3]), doc_scales=scales).item() == 16
