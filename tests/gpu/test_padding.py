import numpy as np
import pytest
import torch

from m3fast.kernels import native, padding
from m3fast.kernels.padding import pack_rows, pad_rows, unpad
from m3fast.kernels.reference import pack_rows_ref, pad_rows_ref, unpad_ref

SHAPES = [(1, 1), (70, 20), (33, 130), (3, 1200), (0, 5), (5, 0)]


def batch(rng, rows, width, device):
    """ids with literal pads among them; a mask of either padding, holes, rows without a token."""
    columns, lengths = np.arange(width), rng.integers(0, width + 1, (rows, 1))
    kinds = [columns < lengths, columns >= width - lengths, rng.random((rows, width)) < 0.6]
    mask = np.where(rng.random((rows, 1)) < 0.5, kinds[rng.integers(3)], kinds[rng.integers(3)])
    ids = torch.from_numpy(rng.integers(0, 6, (rows, width)))
    return ids.to(device), torch.from_numpy(mask).to(device)


def equal(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.int32
        assert torch.equal(a.cpu(), b.cpu())


@pytest.fixture(params=["extension", "torch"])
def way(request, monkeypatch, device):
    """The CUDA kernels, or the torch path where the extension lacks them."""
    if request.param == "extension":
        if device.type != "cuda":
            pytest.skip("needs a CUDA device")
        assert native.why_no_cuda(device) == ""
    else:
        monkeypatch.setattr(native, "cuda_library", lambda op, *tensors: None)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_unpad(way, device, rng, shape):
    for id_type in (torch.int32, torch.int64):
        for mask_type in (torch.bool, torch.uint8, torch.int32, torch.int64):
            ids, mask = batch(rng, *shape, device)
            n = int(mask.sum())
            for pad_id in (1, None):
                for total in (None, n, n // 2):
                    capacity = mask.numel() if total is None else total
                    found = unpad(ids.to(id_type), mask.to(mask_type), pad_id, total=total)
                    equal(found, unpad_ref(ids.cpu(), mask.cpu(), pad_id, capacity))


@pytest.mark.parametrize("channels", [1, 8, 513, 1024])
@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16, torch.float32], ids=str)
def test_rows_go_to_and_fro(way, device, rng, dtype, channels):
    ids, mask = batch(rng, 9, 33, device)
    hidden = torch.randn(9, 33, channels, device=device).mul(50).to(dtype)
    for total in (int(mask.sum()), 9 * 33, int(mask.sum()) // 2):
        slots = unpad(ids, mask, 1, total=total).slots
        packed = pack_rows(hidden, slots, total)
        assert torch.equal(packed, pack_rows_ref(hidden, slots, total))
        assert torch.equal(pad_rows(packed, slots), pad_rows_ref(packed, slots))


@pytest.mark.gpu
def test_strided_arguments(device, rng):
    ids, mask = batch(rng, 12, 40, device)
    equal(unpad(ids[::2, 3:], mask[::2, 3:], 1), unpad(ids[::2, 3:].clone(), mask[::2, 3:], 1))
    hidden = torch.randn(12, 40, 16, device=device).transpose(0, 1)
    slots = unpad(ids.T, mask.T, 1).slots
    assert torch.equal(pack_rows(hidden, slots, 480), pack_rows_ref(hidden, slots, 480))


@pytest.mark.gpu
def test_random_batches_in_turn(device, rng):
    """One look-back state serves launch after launch, of any size."""
    for _ in range(200):
        rows, width = int(rng.integers(1, 6000)), int(rng.integers(1, 60))
        ids, mask = batch(rng, rows, width, device)
        found = unpad(ids, mask, 1)
        n = int(mask.sum())
        assert torch.equal(found.ids[:n].long(), ids[mask])
        assert torch.equal(found.cu_seqlens[1:].long(), mask.sum(1).cumsum(0))
        assert torch.equal(found.slots[mask].cpu(), torch.arange(n, dtype=torch.int32))
    assert all(not state.any() for state in padding._states.values())


def there_and_back(ids, mask, hidden):
    slots = unpad(ids, mask, 1).slots
    return pad_rows(pack_rows(hidden, slots, mask.numel()), slots)


@pytest.mark.gpu
def test_no_wait_for_the_host(way, device, rng):
    ids, mask = batch(rng, 64, 100, device)
    hidden = torch.randn(64, 100, 256, device=device)
    there_and_back(ids, mask, hidden)
    torch.cuda.set_sync_debug_mode("error")
    try:
        there_and_back(ids, mask, hidden)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_one_launch_each(device, rng):
    ids, mask = batch(rng, 64, 100, device)
    hidden = torch.randn(64, 100, 256, device=device)
    there_and_back(ids, mask, hidden)
    torch.cuda.synchronize(device)
    with torch.profiler.profile() as profile:
        there_and_back(ids, mask, hidden)
        torch.cuda.synchronize(device)
    launched = [e.name for e in profile.events() if e.device_type.name == "CUDA"]
    kernels = [n.partition("_kernel")[0].rpartition(":")[2] for n in launched if "Sync" not in n]
    if not kernels:
        pytest.skip("the profiler sees no kernels on this machine")
    assert sorted(kernels) == ["gather_rows", "scatter_rows", "unpad_ids"]


@pytest.mark.gpu
def test_streams_do_not_share_a_state(device, rng):
    batches = [batch(rng, 5000, 40, device) for _ in range(4)]
    streams = [torch.cuda.Stream(device) for _ in batches]
    torch.cuda.synchronize(device)
    found = []
    for _ in range(20):
        for stream, (ids, mask) in zip(streams, batches, strict=True):
            with torch.cuda.stream(stream):
                found.append(unpad(ids, mask, 1))
    torch.cuda.synchronize(device)
    for i, one in enumerate(found):
        ids, mask = batches[i % 4]
        equal(one, padding._unpad_torch(ids, mask, 1, mask.numel()))


@pytest.mark.gpu
def test_graph_replays_on_another_stream(device, rng):
    ids, mask = batch(rng, 300, 50, device)
    hidden = torch.randn(300, 50, 64, device=device)
    pack_rows(hidden, unpad(ids, mask, 1).slots, 15000)  # loads the kernels
    pad_rows(hidden[0], torch.zeros(1, 1, dtype=torch.int32, device=device))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        packed = unpad(ids, mask, 1)
        rows = pack_rows(hidden, packed.slots, 15000)
        padded = pad_rows(rows, packed.slots)
    stream = torch.cuda.Stream(device)
    for _ in range(5):
        fresh_ids, fresh_mask = batch(rng, 300, 50, device)
        ids.copy_(fresh_ids)
        mask.copy_(fresh_mask)
        torch.cuda.synchronize(device)
        with torch.cuda.stream(stream):
            graph.replay()
        other = unpad(ids, mask, None)  # at the same time, with a state of its own
        torch.cuda.synchronize(device)
        equal(packed, padding._unpad_torch(ids, mask, 1, 15000))
        equal(other, padding._unpad_torch(ids, mask, None, 15000))
        assert torch.equal(padded, hidden.masked_fill(~mask[..., None], 0))


@pytest.mark.gpu
def test_addresses_beyond_32_bits(device):
    width, channels = 1 << 16, 1 << 16  # 2**32 bytes, 2**32 elements
    if torch.cuda.mem_get_info(device)[0] < 20 << 30:
        pytest.skip("needs 20 GB")
    hidden = torch.zeros(1, width, channels, dtype=torch.int8, device=device)
    hidden[0, -3:] = torch.randint(1, 99, (3, channels), dtype=torch.int8, device=device)
    slots = torch.arange(width, dtype=torch.int32, device=device)[None]
    last = hidden[0, -4:].clone()
    packed = pack_rows(hidden, slots, width)
    del hidden
    padded = pad_rows(packed, slots)[0, -4:].clone()
    packed = packed[-4:].clone()
    torch.cuda.empty_cache()  # for those who test beside us
    assert torch.equal(packed, last) and torch.equal(padded, last)
