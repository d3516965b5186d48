import threading

import numpy as np
import pytest

from m3fast.kernels import native
from m3fast.kernels.packing import Layout, pack, pack_parts, packed_entries, packed_size
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
    with pytest.raises(ValueError, match=f"out: expected at least {room} entries, found"):
        pack(ids, offsets, order, 1, 40, out=staging[: room - 1])


def made_parts(rng):
    """Three callers' texts, one of which asks for none, and the same as one part."""
    parts, numbers = [], []
    for lengths, chosen in (([3, 0, 40], [2, 0, 1]), ([7], []), ([5, 1, 9], [2, 0]), ([64], [0])):
        _, ids, offsets = ragged_texts(rng, lengths)
        before = sum(len(p[1]) - 1 for p in parts)
        parts.append((ids, offsets, np.array(chosen, np.int64)))
        numbers += [before + i for i in chosen]
    ids = np.concatenate([p[0] for p in parts])
    lengths = np.concatenate([np.diff(p[1]) for p in parts])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return parts, (ids, offsets, np.array(numbers))


@pytest.mark.parametrize("pad_id", [1, None])
def test_several_parts_equal_one(path, rng, pad_id):
    parts, one = made_parts(rng)
    expected, found = pack(*one, pad_id, 40), pack_parts(parts, pad_id, 40)
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a, b)
    assert packed_size(parts) == (len(found.ids), 6, found.longest) == (121, 6, 64)
    none = pack_parts([], pad_id, 40)
    assert [a.tolist() for a in none[:4]] == [[], [], [], [0]] and none.longest == 0


def test_room_that_is_left_belongs_to_no_text(path, rng):
    parts, one = made_parts(rng)
    expected, layout = pack(*one, 1, 40), Layout(130, 9)
    out = np.full(layout.entries + 5, -9, np.int32)
    found = pack_parts(parts, 1, 40, out=out, layout=layout)
    rests = (0, 0, 9, 121)
    for a, b, whole, rest in zip(expected, found, layout.split(out), rests, strict=False):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, whole[: len(a)])
        assert (whole[len(a) :] == rest).all()
    assert (out[layout.entries :] == -9).all()
    for few in (Layout(120, 9), Layout(130, 5)):
        with pytest.raises(ValueError, match="out: expected room for 121 tokens and 6 texts"):
            pack_parts(parts, 1, 40, out=out, layout=few)


def test_errors_count_through_all_parts(path, rng):
    parts, _ = made_parts(rng)
    parts[2][0][1] = 40  # of its first text, the fifth of all
    with pytest.raises(ValueError, match="ids: expected 0 to 39, found 40 in text 4"):
        pack_parts(parts, 1, 40)
    parts[2][2][1] = 3
    with pytest.raises(ValueError, match="order: expected texts 0 to 2, found 3 at 4"):
        pack_parts(parts, 1, 40)
    for bad in ([0, 2, 10], [1, 64], [0, 65], []):
        with pytest.raises(ValueError, match="offsets"):
            pack_parts([(parts[3][0], np.array(bad, np.int64), parts[3][2])], 1, 40)
    for i, wrong in enumerate((np.zeros(64), np.array([0, 64], np.int32), [0])):
        part = [*parts[3][:i], wrong, *parts[3][i + 1 :]]
        with pytest.raises(TypeError, match=("ids", "offsets", "order")[i]):
            pack_parts([tuple(part)], 1, 40)


def test_bad_out(path):
    ids, offsets, order = np.zeros(4, np.int32), np.array([0, 2, 4]), np.array([0, 1])
    with pytest.raises(TypeError, match="out: dtype int32"):
        pack(ids, offsets, order, 1, 9, out=np.empty(99))
    fixed = np.empty(99, np.int32)
    fixed.flags.writeable = False
    for bad in (np.empty(99, np.int32)[::2], fixed):
        with pytest.raises(ValueError, match="out: a contiguous numpy array that can be written"):
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
    with pytest.raises(ValueError, match="ids: expected 0 to 8, found 9 in text 1"):
        pack(ids, offsets, order, 1, 9)
    ids[1] = -1
    with pytest.raises(ValueError, match="ids: expected 0 to 9, found -1 in text 0"):
        pack(ids, offsets, order, 1, 10)


def test_bad_arguments(path):
    ids, offsets, order = np.zeros(4, np.int32), np.array([0, 2, 4]), np.array([0, 1])
    with pytest.raises(TypeError, match="ids: dtype int32"):
        pack(ids.astype(np.int64), offsets, order, 1, 9)
    with pytest.raises(TypeError, match="offsets: dtype int64"):
        pack(ids, offsets.astype(np.int32), order, 1, 9)
    with pytest.raises(TypeError, match="order: an array of int64"):
        pack(ids, offsets, [0, 1], 1, 9)
    for bad in ([0, 2, 3], [1, 2, 4], [0, 5, 4], []):
        with pytest.raises(ValueError, match="offsets"):
            pack(ids, np.array(bad, np.int64), order, 1, 9)
    for bad in (2, -1):
        with pytest.raises(ValueError, match=f"order: expected texts 0 to 1, found {bad} at 1"):
            pack(ids, offsets, np.array([0, bad]), 1, 9)


def test_more_tokens_than_offsets_can_hold(path):
    ids, offsets = np.zeros(1 << 20, np.int32), np.array([0, 1 << 20])
    with pytest.raises(ValueError, match=r"ids: expected fewer than 2\*\*31 tokens"):
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
