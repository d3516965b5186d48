"""Several processes behind one drop-in: whose results a call gets, and who outlives whom."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import TEXTS, make_checkpoint, overflowing
from poolwork import echo

from m3fast import BGEM3FlagModel, Engine, InputError, M3FastError
from m3fast.errors import EngineClosedError, NonFiniteError, OverloadedError
from m3fast.flag.pool import Pool
from m3fast.model.inference import inference

pytestmark = pytest.mark.slow

TWO = ["cpu", "cpu"]


class TooLong(Exception):
    """What a caller's own signal handler raises."""


def give_up(*_: object) -> None:
    raise TooLong


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"), seed=9)


@pytest.fixture(scope="module")
def alone(path) -> BGEM3FlagModel:
    return BGEM3FlagModel(str(path), devices="cpu")


@pytest.fixture(scope="module")
def model(path):
    with BGEM3FlagModel(str(path), devices=TWO) as made:
        made.encode(TEXTS)
        yield made
    assert made.pool is None
    with pytest.raises(EngineClosedError, match="closed"):
        made.encode(TEXTS)


def texts_of(call: int, n: int) -> list[str]:
    return [f"call {call}, text {i}: {'word ' * ((7 * i + call) % 40)}" for i in range(n)]


def interruptions(work: Callable[[], object], times: int) -> Iterator[int]:
    """Interrupt `work` so many times, anywhere in it; yields after each of its calls.

    The exceptions are held, as a notebook does, and with them every frame they came through.
    """
    rng, before, fast = random.Random(5), signal.signal(signal.SIGALRM, give_up), 60.0
    call, held = 0, list[TooLong]()
    try:
        while len(held) < times:
            start = time.perf_counter()
            try:
                if call:
                    signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, fast))
                work()
                fast = min(fast, time.perf_counter() - start)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except TooLong as error:
                held.append(error)
            assert not torch.is_inference_mode_enabled()
            yield call
            call += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_an_interrupted_call_leaves_nothing_behind(model, alone) -> None:
    """The next call's rows are its own, wherever in the call before the exception struck."""
    given = texts_of(0, 400)
    for call in interruptions(lambda: model.encode(given, return_sparse=True), 12):
        if call % 3 == 0:
            others = texts_of(1000 + call, 13)
            found = model.encode(others)["dense_vecs"]
            np.testing.assert_allclose(found, alone.encode(others)["dense_vecs"], atol=2e-6)


def test_inference_mode_is_left_wherever_the_exception_struck() -> None:
    def work() -> None:
        for _ in range(300):
            with inference():
                assert torch.is_inference_mode_enabled()

    for _ in interruptions(work, 200):
        pass


@pytest.mark.parametrize("device", ["cpu", TWO])
def test_an_interrupted_engine_goes_on(path, device) -> None:
    """In one process: no lock stays taken, no thread waits for ever, no row is another's."""
    engine = Engine.from_pretrained(path, device=device, dtype="float32", token_budget=64)
    given = texts_of(1, 12)
    wanted = engine.encode(given)
    for call in interruptions(lambda: engine.encode(given[::-1]), 60):
        if call % 10 == 0:
            found = engine.encode(given)
            np.testing.assert_allclose(found.dense, wanted.dense, atol=2e-6)
            np.testing.assert_array_equal(found.colbert.offsets, wanted.colbert.offsets)


def test_many_threads_each_get_their_own(model, alone) -> None:
    calls = [texts_of(call, 3 + call % 9) for call in range(27)]
    wanted = [alone.encode(given, return_sparse=True) for given in calls]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda given: model.encode(given, return_sparse=True), calls))
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a["dense_vecs"], b["dense_vecs"], atol=2e-6)
        assert [list(r) for r in a["lexical_weights"]] == [list(r) for r in b["lexical_weights"]]


def test_one_device_from_many_threads(path) -> None:
    model = BGEM3FlagModel(str(path), devices="cpu")
    calls = [texts_of(call, 3) for call in range(16)]
    wanted = [model.encode(given)["dense_vecs"] for given in calls]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda given: model.encode(given)["dense_vecs"], calls))
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a, b)


def test_ctrl_c_reaches_the_caller_alone(model, alone) -> None:
    """A terminal sends it to the children too; they stay."""
    processes = model.pool["processes"]
    for process in processes:
        os.kill(process.pid, signal.SIGINT)
    found = model.encode(TEXTS)["dense_vecs"]
    np.testing.assert_allclose(found, alone.encode(TEXTS)["dense_vecs"], atol=2e-6)
    assert model.pool["processes"] is processes


def test_errors_name_the_caller_s_texts(model) -> None:
    with pytest.raises(InputError, match=r"texts\[11\]"):
        model.encode([*TEXTS[:11], None])
    with pytest.raises(InputError, match=r"sentences\[1\]"):
        model.encode(["a", None], instruction="i")


def test_a_text_that_is_not_finite_is_named_whichever_process_had_it(tmp_path) -> None:
    model = BGEM3FlagModel(str(overflowing(make_checkpoint(tmp_path, seed=9), "the")), devices=TWO)
    with model, pytest.raises(NonFiniteError, match=r"texts\[9\]: expected finite dense") as failed:
        model.encode([*["fine"] * 9, "the end", "fine"])
    assert failed.value.index == 9


def test_what_workers_raise_and_how_they_end() -> None:
    pool = Pool(["a", "b", "c"], echo, None)
    assert pool.map(list(range(7)), {"what": "x"}) == [
        (0, ["x", 0, 1, 2]), (3, ["x", 3, 4, 5]), (6, ["x", 6]),
    ]  # fmt: skip
    assert pool.map([], {"what": "x"}) == [(0, ["x"])]
    with pytest.raises(OverloadedError, match="no room") as failed:
        pool.map([1], {"what": "raise"})
    assert failed.value.retry_after == 2.5
    with pytest.raises(M3FastError, match="Local: words"):
        pool.map([1], {"what": "local"})
    with pytest.raises(Exception, match="pickle"):
        pool.map([1], {"what": threading.Lock()})
    # A call that has ended drops what of it has not begun.
    with ThreadPoolExecutor(1) as threads:
        slow = threads.submit(pool.map, [0] * 30, {"what": "slow"})
        assert pool.map([5], {"what": "x"}) == [(0, ["x", 5])]
        assert len(slow.result()) == 3
    with pytest.raises(M3FastError, match="a worker process died with exit code 3"):
        pool.map([1], {"what": "exit"})
    with pytest.raises(M3FastError, match="died"):
        pool.map([1], {"what": "x"})
    processes = pool["processes"]
    pool.stop()
    pool.stop()
    assert not any(process.is_alive() for process in processes)
    with pytest.raises(M3FastError):
        pool.map([1], {"what": "x"})


OWNER = """
import os, signal, sys, time
from m3fast import BGEM3FlagModel

def main():
    model = BGEM3FlagModel(sys.argv[1], devices=["cpu", "cpu"])
    model.encode(["a", "b"])
    print(*(process.pid for process in model.pool["processes"]), flush=True)
    how = sys.argv[2]
    if how == "busy":
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        model.encode(["many words " * 400] * 2000)
    if how == "wait":
        time.sleep(60)

if __name__ == "__main__":
    main()
"""


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize(
    ("how", "sent", "code"),
    [
        ("end", None, 0),
        ("wait", signal.SIGTERM, -signal.SIGTERM),
        ("wait", signal.SIGKILL, -signal.SIGKILL),
        ("busy", None, -signal.SIGKILL),
    ],
)
def test_workers_end_with_their_owner_in_silence(path, tmp_path, how, sent, code) -> None:
    script = tmp_path / "owner.py"
    script.write_text(OWNER)
    command = [sys.executable, str(script), str(path), how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as owner:
        assert owner.stdout is not None and owner.stderr is not None
        pids = [int(pid) for pid in owner.stdout.readline().split()]
        assert len(pids) == 2
        if sent is not None:
            owner.send_signal(sent)
        said = owner.stderr.read()  # until nobody holds it any more, the workers neither
        assert owner.wait(timeout=30) == code
    assert said == b""
    until = time.monotonic() + 30
    while not all(map(gone, pids)):
        assert time.monotonic() < until
        time.sleep(0.05)
