import threading

import numpy as np
import pytest

from m3fast.kernels import native
from m3fast.kernels.packing import pack, packed_entries
from m3fast.kernels.reference import pack_ref


def ragged_texts(rng, lengths, vocab=40):
    texts = [rng.integers(0, vocab, n).astype(np.int32) for n in lengths]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return texts, np.concatenate([*texts, np.empty(0, np.int32)]), offsets


@pytest.mark.parametrize("pad_id", [1, 0, None])
def test_equals_reference(path, rng, pad_id):
    texts, ids, offsets = ragged_texts(rng, [5, 0, 1, 33, 2, 64, 500])
    for order in (np.arange(7), rng.permutation(7), np.array([3, 3, 1])):
        *arrays, longest = pack(ids, offsets, order, pad_id, 40)
        expected = pack_ref([t.tolist() for t in texts], order.tolist(), pad_id)
        for array, tensor in zip(arrays, expected, strict=True):
            assert array.dtype == np.int32
            np.testing.assert_array_equal(array, tensor.numpy())
        assert longest == max(len(texts[i]) for i in order)


def test_literal_pad_does_not_advance(path):
    ids = np.array([0, 5, 1, 1, 7, 2, 0, 2], np.int32)
    packed = pack(ids, np.array([0, 6, 8]), np.array([0, 1]), 1, 8)
    assert packed.positions.tolist() == [2, 3, 1, 1, 4, 5, 2, 3]
    assert packed.texts.tolist() == [0] * 6 + [1] * 2
    assert packed.cu_seqlens.tolist() == [0, 6, 8]
    plain = pack(ids, np.array([0, 8]), np.array([0]), None, 8)
    assert plain.positions.tolist() == list(range(8))


@pytest.mark.parametrize("lengths", [[5, 0, 3], [1], [33, 64, 31, 1], [0], []])
def test_writes_into_the_callers_buffer(path, rng, lengths):
    _, ids, offsets = ragged_texts(rng, np.array(lengths, np.int64))
    order = rng.permutation(len(lengths))
    expected = pack(ids, offsets, order, 1, 40)
    room = packed_entries(len(ids), len(order))
    staging = np.full(room + 7, -9, np.int32)
    packed = pack(ids, offsets, order, 1, 40, out=staging[4:])
    step = -(-len(ids) // 4) * 4
    for i, (part, same) in enumerate(zip(packed[:4], expected[:4], strict=True)):
        np.testing.assert_array_equal(part, same)
        np.testing.assert_array_equal(staging[4 + i * step :][: len(part)], same)
    assert packed.longest == expected.longest
    assert (staging[:4] == -9).all() and (staging[4 + room :] == -9).all()
    with pytest.raises(ValueError, match=f"out: at least {room} entries were expected, got"):
        pack(ids, offsets, order, 1, 40, out=staging[: room - 1])


def test_bad_out(path):
    ids, offsets, order = np.zeros(4, np.int32), np.array([0, 2, 4]), np.array([0, 1])
    with pytest.raises(TypeError, match="out: expected dtype int32"):
        pack(ids, offsets, order, 1, 9, out=np.empty(99))
    fixed = np.empty(99, np.int32)
    fixed.flags.writeable = False
    for bad in (np.empty(99, np.int32)[::2], fixed):
        with pytest.raises(ValueError, match="out: expected a contiguous array to write into"):
            pack(ids, offsets, order, 1, 9, out=bad)


def test_nothing_to_pack(path):
    for offsets, order in (([0], []), ([0, 0, 0], [1, 0]), ([0, 3], [])):
        ids = np.zeros(offsets[-1], np.int32)
        packed = pack(ids, np.array(offsets, np.int64), np.array(order, np.int64), 1, 5)
        assert len(packed.ids) == len(packed.positions) == len(packed.texts) == packed.longest == 0
        assert packed.cu_seqlens.tolist() == [0] * (len(order) + 1)


def test_id_outside_the_vocabulary(path):
    ids = np.array([0, 3, 4, 9], np.int32)
    offsets, order = np.array([0, 2, 4]), np.array([1, 0])
    with pytest.raises(ValueError, match="ids: 0 to 8 was expected, got 9 in text 1"):
        pack(ids, offsets, order, 1, 9)
    ids[1] = -1
    with pytest.raises(ValueError, match="ids: 0 to 9 was expected, got -1 in text 0"):
        pack(ids, offsets, order, 1, 10)


def test_bad_arguments(path):
    ids, offsets, order = np.zeros(4, np.int32), np.array([0, 2, 4]), np.array([0, 1])
    with pytest.raises(TypeError, match="ids: expected dtype int32"):
        pack(ids.astype(np.int64), offsets, order, 1, 9)
    with pytest.raises(TypeError, match="offsets: expected dtype int64"):
        pack(ids, offsets.astype(np.int32), order, 1, 9)
    with pytest.raises(TypeError, match="order: expected an array of int64"):
        pack(ids, offsets, [0, 1], 1, 9)
    for bad in ([0, 2, 3], [1, 2, 4], [0, 5, 4], []):
        with pytest.raises(ValueError, match="offsets"):
            pack(ids, np.array(bad, np.int64), order, 1, 9)
    for bad in (2, -1):
        with pytest.raises(ValueError, match=f"order: texts 0 to 1 were expected, got {bad} at 1"):
            pack(ids, offsets, np.array([0, bad]), 1, 9)


def test_more_tokens_than_offsets_can_hold(path):
    ids, offsets = np.zeros(1 << 20, np.int32), np.array([0, 1 << 20])
    with pytest.raises(ValueError, match=r"ids: fewer than 2\*\*31 tokens"):
        pack(ids, offsets, np.zeros(2048, np.int64), 1, 9)


def test_threads_may_pack_at_once(rng):
    if not native.available:
        pytest.skip(native.why)
    _, ids, offsets = ragged_texts(rng, [50] * 200)
    order = np.arange(200)
    expected = pack(ids, offsets, order, 1, 40)[1]
    wrong = []

    def work():
        for _ in range(20):
            if not np.array_equal(pack(ids, offsets, order, 1, 40)[1], expected):
                wrong.append(1)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert not wrong
