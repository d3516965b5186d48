"""Each operation is tested on every path it can take on this machine."""

import numpy as np
import pytest
import torch

from m3fast.kernels import native

# Around the sizes of tiles, panels and blocks, with an empty text in the middle.
LENGTHS = [1, 2, 31, 33, 0, 63, 64, 65, 129, 500, 1, 17]


# Paths that differ from another in the operations of int8 alone.
INT8_ALONE = ("amx", "avx512vnni", "avxvnni")


def int8_paths():
    """The instruction sets that this machine runs and this build has, and torch alone."""
    if native.forced:
        return [native.forced]
    return ["torch", *(native.library().cpu_paths() if native.available else ())]


def paths():
    """Those that differ in operations of floats."""
    return [p for p in int8_paths() if p == native.forced or p not in INT8_ALONE]


def on(path, monkeypatch):
    """The instructions in use, or plain torch as where the extension was not built."""
    if path == "torch":
        monkeypatch.setattr(native, "_extension", None)
        monkeypatch.setattr(native, "_warned", True)
        yield "torch"
    else:
        before = native.library().cpu_path()
        yield native.library().cpu_path(path)
        native.library().cpu_path(before)


@pytest.fixture(params=paths())
def path(request, monkeypatch):
    yield from on(request.param, monkeypatch)


@pytest.fixture(params=int8_paths())
def int8_path(request, monkeypatch):
    yield from on(request.param, monkeypatch)


@pytest.fixture
def seed():
    """A different seed on every run, shown where a test fails."""
    value = int(np.random.SeedSequence().entropy % 2**31)
    print(f"seed {value}")
    return value


@pytest.fixture
def rng(seed):
    torch.manual_seed(seed)
    return np.random.default_rng(seed)


@pytest.fixture(autouse=True)
def _restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def ragged():
    """cu_seqlens of LENGTHS."""
    return np.concatenate([[0], np.cumsum(LENGTHS)]).astype(np.int32)


@pytest.fixture
def gap():
    """gap(a, b): greatest absolute difference, NaN if there is any NaN."""

    def measure(a, b):
        a, b = (torch.as_tensor(v).double() for v in (a, b))
        assert a.shape == b.shape
        return (a - b).abs().max().item() if a.numel() else 0.0

    return measure


@pytest.fixture
def same_bits():
    """same_bits(run): equal to the bit in three runs and with one, two and three threads."""

    def check(run):
        outs = []
        for threads in (1, 2, 3, 2, 2):
            torch.set_num_threads(threads)
            outs.append(run().view(torch.uint8))
        assert all(torch.equal(outs[0], o) for o in outs[1:])

    return check
