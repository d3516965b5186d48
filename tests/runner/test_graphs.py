"""When a shape is captured and replayed, with stand-ins for CUDA's graphs."""

from __future__ import annotations

import contextlib
import ctypes
import types
import warnings

import pytest
import torch

from m3fast.runner.graphs import Graphs


class FakeGraph:
    """Replays what ran while it was captured."""

    recording = None
    broken = False  # the capture that runs

    def __init__(self) -> None:
        self.work, self.ended, self.was_reset = [], False, False

    def pool(self) -> int:
        if not self.ended:
            raise RuntimeError("without a preceding successful capture")
        return 7

    def capture_end(self) -> None:
        if FakeGraph.broken:
            FakeGraph.broken = False
            raise RuntimeError("operation failed due to a previous error during capture")
        self.ended = True

    def reset(self) -> None:
        self.was_reset = True

    def replay(self) -> None:
        for step in self.work:
            step()


class Stream:
    cuda_stream = 11


@pytest.fixture
def cuda(monkeypatch):
    """Calls of the driver and pools that captures were given."""
    calls, stream = [], Stream()

    @contextlib.contextmanager
    def capture(graph, pool, stream, capture_error_mode):
        assert isinstance(stream, Stream) and capture_error_mode == "thread_local"
        calls.append(pool)
        FakeGraph.recording = graph
        try:
            yield
        finally:
            FakeGraph.recording = None
            graph.capture_end()

    def driver(name):
        assert name == "libcuda.so.1"
        return types.SimpleNamespace(
            cuStreamBeginCapture_v2=lambda handle, mode: calls.append((handle.value, mode))
        )

    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(ctypes, "CDLL", driver)
    return types.SimpleNamespace(calls=calls, stream=stream)


def counter(name, log):
    def step():
        log.append(name)

    def work():
        if FakeGraph.recording is None:
            log.append(f"eager {name}")
        else:
            FakeGraph.recording.work.append(step)

    return work


def test_eager_then_captured_then_replayed(cuda) -> None:
    graphs, log = Graphs(cuda.stream), []
    for _ in range(4):
        graphs.run(1, counter("a", log))
    assert log == ["eager a", "a", "a", "a"]
    assert len(graphs) == 1
    graphs.run(2, counter("b", log))
    assert log[-1] == "eager b" and len(graphs) == 1
    graphs.run(2, counter("b", log))
    assert log[-1] == "b" and len(graphs) == 2
    assert cuda.calls == [None, 7], "all graphs share the pool of the first"


def test_without_a_stream_everything_is_eager() -> None:
    graphs, log = Graphs(None), []
    for _ in range(3):
        graphs.run(1, counter("a", log))
    assert log == ["eager a"] * 3 and len(graphs) == 0


def test_a_key_too_many_drops_the_one_not_used_for_longest(cuda, monkeypatch) -> None:
    monkeypatch.setattr("m3fast.runner.graphs.MOST_KEYS", 2)
    graphs, log = Graphs(cuda.stream), []
    for key in "aabbac":
        graphs.run(key, counter(key, log))
    assert graphs.keys == ["a"] and log[-1] == "eager c"
    graphs.run("b", counter("b", log))
    assert log[-1] == "eager b"


@pytest.mark.parametrize("broken", [True, False], ids=["CUDA refuses", "CUDA ends it"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_capture_is_said_once(cuda, broken, error) -> None:
    """Its graph is ended and reset; nothing else is captured, and what was is replayed."""
    graphs, log, failed = Graphs(cuda.stream), [], []

    def work() -> None:
        if FakeGraph.recording is not None:
            failed.append(FakeGraph.recording)
            FakeGraph.broken = broken
            raise error("operation not permitted when stream is capturing")
        log.append("eager")

    for _ in range(2):
        graphs.run("good", counter("good", log))
    graphs.run("shape", work)
    del log[:], cuda.calls[:]
    said = error is RuntimeError
    with (
        pytest.warns(RuntimeWarning, match="no CUDA graph for shape.* not permitted")
        if said
        else pytest.raises(KeyboardInterrupt)
    ):
        graphs.run("shape", work)
    assert [(graph.ended, graph.was_reset) for graph in failed] == [(True, True)]
    assert cuda.calls == [7, *[(11, 2)] * broken]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            graphs.run("shape", work)
            graphs.run("another", work)
        graphs.run("good", counter("good", log))
    assert log == ["eager"] * (4 + said) + ["good"] and graphs.keys == ["good"]
