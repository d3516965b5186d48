"""When a shape is captured and replayed, with stand-ins for CUDA's graphs."""

from __future__ import annotations

import contextlib
import warnings

import pytest
import torch

from m3fast.graphs import Graphs


class FakeGraph:
    """Replays what ran while it was captured."""

    recording = None

    def __init__(self) -> None:
        self.work = []

    def pool(self) -> int:
        return 7

    def replay(self) -> None:
        for step in self.work:
            step()


@pytest.fixture
def cuda(monkeypatch):
    pools = []

    @contextlib.contextmanager
    def capture(graph, pool, stream, capture_error_mode):
        assert stream == "stream" and capture_error_mode == "thread_local"
        pools.append(pool)
        FakeGraph.recording = graph
        yield
        FakeGraph.recording = None

    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    return pools


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
    graphs, log = Graphs("stream"), []
    for _ in range(4):
        graphs.run(1, counter("a", log))
    assert log == ["eager a", "a", "a", "a"]
    assert len(graphs) == 1
    graphs.run(2, counter("b", log))
    assert log[-1] == "eager b" and len(graphs) == 1
    graphs.run(2, counter("b", log))
    assert log[-1] == "b" and len(graphs) == 2
    assert cuda == [None, 7], "all graphs share the pool of the first"


def test_without_a_stream_everything_is_eager() -> None:
    graphs, log = Graphs(None), []
    for _ in range(3):
        graphs.run(1, counter("a", log))
    assert log == ["eager a"] * 3 and len(graphs) == 0


def test_a_failed_capture_is_said_once(cuda) -> None:
    graphs, log = Graphs("stream"), []

    def work() -> None:
        if FakeGraph.recording is not None:
            FakeGraph.recording = None
            raise RuntimeError("operation not permitted when stream is capturing")
        log.append("eager")

    graphs.run("shape", work)
    with pytest.warns(RuntimeWarning, match="no CUDA graph for shape.* not permitted"):
        graphs.run("shape", work)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graphs.run("shape", work)
    assert log == ["eager"] * 3
