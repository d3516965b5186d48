import importlib.util
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

from m3fast.cli import main
from m3fast.kernels import native


def test_says_once_that_the_extension_is_absent(monkeypatch):
    monkeypatch.setattr(native, "_extension", None)
    monkeypatch.setattr(native, "_warned", False)
    monkeypatch.setattr(native, "why", "it was not built")
    with pytest.warns(RuntimeWarning, match="slower torch and numpy paths .* it was not built"):
        assert native.library() is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert native.library() is None


def test_available_says_what_library_gives():
    assert native.available == (native.library() is not None)
    assert bool(native.why) != native.available


@pytest.mark.skipif(not native.available, reason=native.why)
def test_cpu_path():
    lib = native.library()
    before = lib.cpu_path()
    assert before == (native.forced or lib.cpu_paths()[0])
    assert lib.cpu_paths()[-1] == "portable"
    try:
        for path in lib.cpu_paths():
            assert lib.cpu_path(path) == path == lib.cpu_path()
    finally:
        lib.cpu_path(before)
    with pytest.raises(ValueError, match=r"cpu path: .* found 'mmx'"):
        lib.cpu_path("mmx")
    assert lib.cpu_path() == before
    assert lib.has_cuda in (True, False)


@pytest.fixture
def again(monkeypatch):
    """again(path): the module as a process with that M3FAST_CPU_PATH has it."""
    library = native.library()
    before = library and library.cpu_path()

    def load(path):
        monkeypatch.setenv(native.VARIABLE, path)
        spec = importlib.util.spec_from_file_location("m3fast.kernels.again", native.__file__)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load
    if library:
        library.cpu_path(before)


@pytest.mark.skipif(not native.available, reason=native.why)
def test_forced_instructions(again):
    found = again("").bf16_instructions()
    for path in native.library().cpu_paths():
        its = again(path)
        assert its.library().cpu_path() == its.forced == path and not its.refused
        # As on a processor that has no more: bf16 where that path multiplies it.
        its_own = {"amx": found, "avx512bf16": ["avx512_bf16"]}.get(path, [])
        assert its.bf16_instructions() == [name for name in found if name in its_own]


def test_forced_torch_is_an_extension_not_built_and_no_news(again):
    its = again("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert its.library() is None
    assert (its.available, its.why, its.refused) == (False, "M3FAST_CPU_PATH=torch", "")
    assert its.bf16_instructions() == again("").bf16_instructions()


def test_a_path_that_is_not_here(again, monkeypatch, capsys):
    its = again("mmx")
    expected = r"M3FAST_CPU_PATH: expected one of .*torch on this machine, found 'mmx'"
    with pytest.raises(ValueError, match=expected):
        its.library()
    monkeypatch.setattr(native, "refused", its.refused)
    assert main(["env"]) == 2
    assert capsys.readouterr() == ("", f"m3fast: error: {its.refused}\n")


@pytest.mark.skipif(not native.available, reason=native.why)
def test_gradients_other_dtypes_and_strides_take_torch():
    x = torch.zeros(4, 4)
    assert native.library_for(x, None, x.bfloat16()) is not None
    assert native.library_for(x, x.half()) is None
    assert native.library_for(x.T[:, 1:]) is None
    assert native.library_for(torch.zeros(4, 4, device="meta")) is None
    x.requires_grad_()
    assert native.library_for(x) is None
    with torch.no_grad():
        assert native.library_for(x) is not None


COUNT_THREADS = """
import os, torch
from m3fast.kernels import native
from m3fast.kernels.gelu import bias_gelu_

count = lambda: len(os.listdir("/proc/self/task"))
x, bias, weight = torch.randn(512, 1024), torch.randn(1024), torch.randn(1024, 1024)
assert native.library().has_team()
torch.set_num_threads(1)
start = count()
bias_gelu_(x, bias)
assert count() == start, "one thread is the caller's own"
torch.set_num_threads(2)
bias_gelu_(x, bias)
assert count() == start + 1, "the second thread of the team"
torch.nn.functional.gelu(x); x @ weight
assert count() == start + 1, "torch runs on the same team"
bias_gelu_(x, bias)
assert count() == start + 1
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
@pytest.mark.skipif(not native.available, reason=native.why)
def test_runs_on_the_team_of_torch():
    done = subprocess.run([sys.executable, "-c", COUNT_THREADS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not native.available, reason=native.why)
def test_tensors_of_another_dtype_are_refused():
    lib, x, ends = native.library(), torch.zeros(2, 48), np.array([0, 2], np.int32)
    for bias in (torch.zeros(48).double(), np.zeros(48), [0.0] * 48):
        with pytest.raises((TypeError, AttributeError)):
            lib.bias_gelu(x, bias, 1)
    for given in (ends.astype(np.int64), np.array([0, 9, 2, 9], np.int32)[::2]):
        with pytest.raises(TypeError):
            lib.attention(x.view(2, 3, 1, 16), given, 2, 1.0, torch.zeros(2, 16), 1)
