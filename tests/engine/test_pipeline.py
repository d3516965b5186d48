"""Batches through one runner or several: order, lack of memory, errors, callers that leave."""

from __future__ import annotations

import threading
import time
import warnings
from pathlib import Path

import pytest
import torch
from checkpoints import TEXTS, make_checkpoint
from nearness import same

from m3fast import Engine, InputError


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"), seed=6)


@pytest.fixture(scope="module")
def engine(path) -> Engine:
    return Engine.from_pretrained(path, device="cpu", dtype="float32", token_budget=40)


@pytest.fixture
def pair(path) -> Engine:
    """Two devices, which are the CPU twice."""
    return Engine.from_pretrained(
        path, device=["cpu", "cpu"], dtype="float32", token_budget=40
    )


class Small:
    """Stands for a device whose memory holds so many tokens, batches in flight included."""

    def __init__(self, runner, room: int, in_flight: int) -> None:
        self.runner, self.room, self.in_flight = runner, room, in_flight
        self.used, self.freed, self.sizes = 0, 0, []
        self.weights, self.config, self.device = runner.weights, runner.config, runner.device

    def submit(self, parts, outputs, options):
        size = sum(int(part.lengths.sum()) for part in parts)
        if self.used + size > self.room:
            raise torch.OutOfMemoryError(f"room for {self.room}")
        self.used += size
        self.sizes.append(size)
        wait = self.runner.submit(parts, outputs, options)

        def result():
            self.used -= size
            return wait()

        return result

    def free(self) -> None:
        self.freed += 1


def test_several_devices_equal_one(engine, pair) -> None:
    same(engine.encode(TEXTS * 5), pair.encode(TEXTS * 5), 2e-6)
    assert pair.encode([]).dense.shape == (0, 40)
    before = set(threading.enumerate())
    parts = list(pair.encode_iter(iter(TEXTS * 5)))
    same(engine.encode(TEXTS * 5), parts[0], 2e-6)
    assert set(threading.enumerate()) == before


def test_each_device_takes_part(pair, monkeypatch) -> None:
    both = threading.Barrier(2)
    taken = set()
    for runner in pair.runners:
        submit = runner.submit

        def counted(*args, runner=runner, submit=submit):
            if id(runner) not in taken:
                taken.add(id(runner))
                both.wait(60)
            return submit(*args)

        monkeypatch.setattr(runner, "submit", counted)
    pair.encode(TEXTS * 5)
    assert taken == {id(runner) for runner in pair.runners}


def test_windows_stay_in_order(engine, pair, monkeypatch) -> None:
    monkeypatch.setattr("m3fast.engine.engine.WINDOW_TEXTS", 3)
    slow = pair.runners[0]
    submit = slow.submit
    monkeypatch.setattr(slow, "submit", lambda *args: (time.sleep(0.02), submit(*args))[1])
    found = list(pair.encode_iter(iter(TEXTS * 2)))
    assert [len(part) for part in found] == [3] * 8
    for i, part in enumerate(found):
        same(engine.encode((TEXTS * 2)[3 * i : 3 * i + 3]), part, 2e-6)


@pytest.mark.parametrize("in_flight", [0, 2])
def test_out_of_memory_splits_the_batch(engine, path, in_flight) -> None:
    roomy = Engine.from_pretrained(path, device="cpu", dtype="float32", token_budget=4096)
    small = Small(roomy.runner, 500, in_flight)
    roomy.runners = [small]
    with pytest.warns(RuntimeWarning, match="out of memory for 36 texts of .* split"):
        found = roomy.encode(TEXTS * 3)
    same(engine.encode(TEXTS * 3), found, 2e-6)
    assert small.freed and small.used == 0


def test_batches_in_flight_make_room_first(engine, path) -> None:
    """A batch that fits alone is not split for those before it."""
    roomy = Engine.from_pretrained(path, device="cpu", dtype="float32", token_budget=350)
    small = Small(roomy.runner, 400, 3)
    roomy.runners = [small]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same(engine.encode(TEXTS * 3), roomy.encode(TEXTS * 3), 2e-6)
    assert small.freed


@pytest.mark.filterwarnings("ignore:out of memory")
@pytest.mark.parametrize("devices", [1, 2])
def test_a_text_that_fits_nowhere_is_the_error(path, devices) -> None:
    engine = Engine.from_pretrained(path, device=["cpu"] * devices, dtype="float32")
    engine.runners = [Small(runner, 20, 1) for runner in engine.runners]
    before = set(threading.enumerate())
    with pytest.raises(torch.OutOfMemoryError, match="room for 20"):
        engine.encode(TEXTS)
    assert set(threading.enumerate()) == before


def test_an_error_of_one_device_is_raised(pair, monkeypatch) -> None:
    failed = threading.Event()
    submit = pair.runners[0].submit

    def wait(*args):
        assert failed.wait(60)  # else one might do all the work before the other begins
        return submit(*args)

    def fail(*args):
        failed.set()
        raise RuntimeError("this device fell over")

    monkeypatch.setattr(pair.runners[0], "submit", wait)
    monkeypatch.setattr(pair.runners[1], "submit", fail)
    before = set(threading.enumerate())
    with pytest.raises(RuntimeError, match="fell over"):
        pair.encode(TEXTS * 20)
    assert set(threading.enumerate()) == before


def test_a_caller_may_leave_early(pair, monkeypatch) -> None:
    monkeypatch.setattr("m3fast.engine.engine.WINDOW_TEXTS", 2)
    before = set(threading.enumerate())
    stream = pair.encode_iter(iter(TEXTS * 20))
    assert len(next(stream)) == 2
    stream.close()
    assert set(threading.enumerate()) == before


def test_a_source_that_breaks_is_raised(engine, pair) -> None:
    def broken():
        yield from TEXTS
        raise OSError("the disk is gone")

    for each in (engine, pair):
        with pytest.raises(OSError, match="the disk is gone"):
            list(each.encode_iter(broken()))


def test_devices_of_two_kinds(path) -> None:
    for device in ([], ["cpu", "cuda:99"], ["cpu", 3], 3):
        with pytest.raises(InputError, match=r"^device"):
            Engine.from_pretrained(path, device=device)


def test_warmup(engine) -> None:
    engine.warmup(dense=True, sparse=False)
    with pytest.raises(InputError, match="at least one"):
        engine.warmup(dense=False, sparse=False, colbert=False)
