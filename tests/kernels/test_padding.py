import numpy as np
import pytest
import torch

from m3fast.kernels import dispatch, native
from m3fast.kernels.padding import pack_rows, pad_rows, unpad
from m3fast.kernels.reference import pack_rows_ref, pad_rows_ref, unpad_ref


def batch(rng, rows, width, pattern):
    """ids [rows, width] with literal pads among them, and a mask."""
    ids = torch.from_numpy(rng.integers(0, 6, (rows, width)))
    lengths = rng.integers(0, width + 1, (rows, 1))
    columns = np.arange(width)
    mask = {
        "right": columns < lengths,
        "left": columns >= width - lengths,
        "holes": rng.random((rows, width)) < 0.6,
        "all": np.ones((rows, width), bool),
        "none": np.zeros((rows, width), bool),
    }[pattern]
    return ids, torch.from_numpy(mask)


def equal(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.int32 and a.is_contiguous()
        assert torch.equal(a, b)


@pytest.mark.parametrize("pattern", ["right", "left", "holes", "all", "none"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (70, 33), (5, 130), (0, 4), (4, 0)], ids=str)
def test_unpad_equals_reference(rng, shape, pattern):
    ids, mask = batch(rng, *shape, pattern)
    n = int(mask.sum())
    for pad_id in (1, None):
        for total in (None, n, (n + mask.numel()) // 2, n // 2):
            expected = unpad_ref(ids, mask, pad_id, mask.numel() if total is None else total)
            for kind in (torch.bool, torch.uint8, torch.int32, torch.int64):
                equal(unpad(ids.int(), mask.to(kind), pad_id, total=total), expected)
            equal(unpad(ids, -3 * mask.int(), pad_id, total=total), expected)


def test_known_total_leaves_no_dummies():
    ids = torch.tensor([[7, 8, 1], [1, 1, 9]])
    packed = unpad(ids, ids != 1, 1, total=3)
    assert packed.ids.tolist() == [7, 8, 9]
    assert packed.positions.tolist() == [2, 3, 2]
    assert packed.texts.tolist() == [0, 0, 1]
    assert packed.cu_seqlens.tolist() == [0, 2, 3]
    assert packed.slots.tolist() == [[0, 1, -1], [-1, -1, 2]]


def test_dummies_close_the_batch():
    ids = torch.tensor([[7, 8, 1], [1, 1, 9]])
    packed = unpad(ids, ids != 1, None)
    assert packed.ids.tolist() == [7, 8, 9, 0, 0, 0]
    assert packed.positions.tolist() == [0, 1, 2, 0, 0, 0]
    assert packed.texts.tolist() == [0, 0, 1, 2, 2, 2]
    assert packed.cu_seqlens.tolist() == [0, 2, 3]
    assert packed.slots.tolist() == [[0, 1, -7], [-6, -5, 2]]


@pytest.mark.parametrize("pattern", ["right", "left", "holes"])
def test_positions_are_those_of_transformers(rng, pattern):
    from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaEmbeddings

    ids, mask = batch(rng, 20, 40, pattern)
    expected = XLMRobertaEmbeddings.create_position_ids_from_input_ids(ids, 1)[mask]
    packed = unpad(ids, mask, 1, total=int(mask.sum()))
    assert torch.equal(packed.positions.long(), expected)
    assert torch.equal(packed.ids.long(), ids[mask])


def test_id_beyond_32_bits_is_no_valid_one():
    ids = torch.tensor([[5, 2**32 + 5, -(2**40), 2**31 - 1]])
    assert unpad(ids, torch.ones(1, 4, dtype=torch.bool), 1).ids.tolist() == [5, -1, -1, 2**31 - 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("pattern", ["right", "holes", "none"])
def test_rows_go_to_and_fro(rng, dtype, pattern):
    ids, mask = batch(rng, 6, 9, pattern)
    hidden = torch.randn(6, 9, 5).mul(50).to(dtype)
    n = int(mask.sum())
    for total in (n, (n + 54) // 2, 54, n // 2):
        slots = unpad(ids, mask, 1, total=total).slots
        packed = pack_rows(hidden, slots, total)
        assert torch.equal(packed, pack_rows_ref(hidden, slots, total))
        padded = pad_rows(packed, slots)
        assert torch.equal(padded, pad_rows_ref(packed, slots))
        if total >= n:
            assert torch.equal(padded, hidden.masked_fill(~mask[..., None], 0))


def test_masked_nan_does_not_get_through(rng):
    ids, mask = batch(rng, 6, 9, "holes")
    hidden = torch.randn(6, 9, 5)
    hidden[~mask] = torch.nan
    slots = unpad(ids, mask, 1).slots
    packed = pack_rows(hidden, slots, 54)
    assert packed.isfinite().all()
    packed[int(mask.sum()) :] = torch.nan
    assert pad_rows(packed, slots).isfinite().all()


def test_gradients(rng):
    ids, mask = batch(rng, 3, 4, "holes")
    slots, total = unpad(ids, mask, 1).slots, int(mask.sum())
    hidden = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    packed = torch.randn(12, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: pack_rows(x, slots, total), hidden)
    assert torch.autograd.gradcheck(lambda x: pad_rows(x, slots), packed)


@pytest.mark.parametrize(("rows", "width", "channels"), [(0, 3, 4), (3, 0, 4), (2, 3, 0)])
def test_nothing_to_move(rows, width, channels):
    slots = torch.full((rows, width), -1, dtype=torch.int32)
    assert pack_rows(torch.zeros(rows, width, channels), slots, 0).shape == (0, channels)
    assert pad_rows(torch.zeros(0, channels), slots).shape == (rows, width, channels)


def test_bad_arguments():
    ids, mask = torch.zeros(2, 3, dtype=torch.int64), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(TypeError, match="ids: dtype"):
        unpad(ids.float(), mask, 1)
    with pytest.raises(TypeError, match="mask: dtype"):
        unpad(ids, mask.float(), 1)
    with pytest.raises(ValueError, match="ids: 2 dimensions"):
        unpad(ids[0], mask, 1)
    with pytest.raises(ValueError, match=r"mask: shape \[2, 3\] was expected, got \[2, 2\]"):
        unpad(ids, mask[:, :2], 1)
    with pytest.raises(ValueError, match="mask: device cpu was expected, got meta"):
        unpad(ids, mask.to("meta"), 1)
    for total in (-1, 7):
        with pytest.raises(ValueError, match=f"total: 0 to 6 was expected, got {total}"):
            unpad(ids, mask, 1, total=total)
        with pytest.raises(ValueError, match=f"total: 0 to 6 was expected, got {total}"):
            pack_rows(torch.zeros(2, 3, 4), ids.int(), total)
    with pytest.raises(ValueError, match="pad_id: 0 to"):
        unpad(ids, mask, -1)
    huge = torch.empty(1 << 16, 1 << 15, dtype=torch.int32, device="meta")
    with pytest.raises(ValueError, match=r"ids: fewer than 2\*\*31 - 1"):
        unpad(huge, huge, 1)
    with pytest.raises(TypeError, match=r"slots: dtype torch\.int32"):
        pad_rows(torch.zeros(2, 4), ids)
    with pytest.raises(ValueError, match=r"slots: shape \[2, 3\]"):
        pack_rows(torch.zeros(2, 3, 4), ids[:1].int(), 3)
    with pytest.raises(ValueError, match="hidden: 3 dimensions"):
        pack_rows(torch.zeros(3, 4), ids.int(), 3)
    with pytest.raises(TypeError, match=r"packed: a torch\.Tensor was expected"):
        pad_rows([1], ids.int())


class OnGpu:
    """As much of a CUDA tensor as the choice of the path looks at."""

    is_cuda, requires_grad, device = True, False, torch.device("cuda:0")


def test_says_once_that_cuda_kernels_are_absent(monkeypatch, recwarn):
    class Built:
        has_cuda = False

    monkeypatch.setattr(dispatch, "_said", set())
    monkeypatch.setattr(native, "_extension", Built)
    for _ in range(2):
        assert native.cuda_library("unpad", OnGpu()) is None
    (said,) = recwarn
    assert "unpad: the slower torch path is used instead of the GPU kernel" in str(said.message)
    assert "built without CUDA" in str(said.message)

    monkeypatch.setattr(Built, "has_cuda", True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert native.cuda_library("pad_rows", OnGpu()) is None
    assert "cuda:0 has 7.5" in str(recwarn[-1].message)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert native.cuda_library("pad_rows", OnGpu()) is Built
    assert native.cuda_library("pad_rows", torch.zeros(2)) is None

    monkeypatch.setattr(native, "_extension", None)
    monkeypatch.setattr(native, "why", "it was not compiled")
    assert native.cuda_library("pack_rows", OnGpu()) is None
    assert "it was not compiled" in str(recwarn[-1].message)


def test_a_failed_launch_names_the_kernel():
    if not native.available or not native.library().has_cuda or torch.cuda.is_available():
        pytest.skip("needs the CUDA half and no GPU")
    lib, sizes = native.library(), (1, 1, 16, 0, 0)
    for kernel in ("gather_rows", "scatter_rows"):
        with pytest.raises(RuntimeError, match=rf"^{kernel}_kernel: .*CUDA"):
            getattr(lib, kernel)(0, 0, 0, *sizes)
    with pytest.raises(RuntimeError, match=r"^unpad_ids_kernel: .*CUDA"):
        lib.unpad_ids(0, 8, 0, 1, 1, 1, 1, None, *[0] * 8)
