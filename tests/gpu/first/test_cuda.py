"""The CUDA C++ kernels, bit for bit."""

from __future__ import annotations

import pytest
import torch

from m3fast.kernels import native, reference
from m3fast.kernels.padding import pack_rows, pad_rows, unpad

pytestmark = pytest.mark.filterwarnings("error:.*the slower torch path", "error:no CUDA graph")


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
