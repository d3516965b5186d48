"""csrc/cuda/pad.cu: its logic on the CPU (emulate.h), its machine code for every architecture."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from m3fast.kernels.reference import pack_rows_ref, pad_rows_ref, unpad_ref

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CUDA = ROOT / "csrc/cuda"
CXX, NVCC = shutil.which("g++"), shutil.which("nvcc")
COMPILE = ["-std=c++17", "-pthread", "-Wno-unknown-pragmas", f"-I{CUDA}", f"-I{HERE}"]
POISON = -77


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> ctypes.CDLL:
    if CXX is None:
        pytest.skip("needs g++")
    path = tmp_path_factory.mktemp("pad") / "pad.so"
    options = ["-O1", "-shared", "-fPIC", "-o", str(path)]
    subprocess.run([CXX, *COMPILE, *options, str(HERE / "pad_emulated.cpp")], check=True)
    lib = ctypes.CDLL(str(path))
    for name in ("unpad_ids", "look_back", "gather_rows", "scatter_rows"):
        getattr(lib, f"emulated_{name}").restype = ctypes.c_char_p
    lib.words_read.restype = ctypes.c_int64
    return lib


@pytest.fixture
def rng(library) -> np.random.Generator:
    """A different seed on every run, shown where a test fails; the order of threads has it too."""
    seed = int(np.random.SeedSequence().entropy % 2**31)
    print(f"seed {seed}")
    library.set_seed(ctypes.c_uint64(seed))
    return np.random.default_rng(seed)


class Guarded:
    """Poisoned memory for a kernel's output, and more of it around, to stay as it is."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        size = int(np.prod(shape)) * dtype.itemsize
        self.all = torch.full((size + 128,), POISON, dtype=torch.int8)
        self.inner = self.all[64 : 64 + size].view(dtype).view(shape)

    def checked(self) -> torch.Tensor:
        assert (self.all[:64] == POISON).all(), "written before its start"
        assert (self.all[len(self.all) - 64 :] == POISON).all(), "written past its end"
        return self.inner


def call(function, *args) -> None:
    def convert(value):
        if isinstance(value, torch.Tensor):
            return ctypes.c_void_p(value.data_ptr())
        return ctypes.c_bool(value) if isinstance(value, bool) else ctypes.c_int64(value)

    error = function(*map(convert, args))
    assert error is None, error


def unpad(library, ids, mask, pad_id, capacity, state):
    rows, width = ids.shape
    out = [Guarded((capacity,), torch.int32) for _ in range(3)]
    out += [Guarded((rows + 1,), torch.int32), Guarded((rows, width), torch.int32)]
    call(
        library.emulated_unpad_ids,
        *(ids, ids.element_size(), mask, mask.element_size(), rows, width, capacity),
        *(pad_id is not None, pad_id or 0, state),
        *(part.inner for part in out),
    )
    assert not state.any(), "the state is not ready for the next launch"
    return [part.checked() for part in out]


def random_mask(rng, rows, width):
    columns = np.arange(width)
    lengths = rng.integers(0, width + 1, (rows, 1))
    kinds = [columns < lengths, columns >= width - lengths, rng.random((rows, width)) < 0.6]
    mask = np.where(rng.random((rows, 1)) < 0.5, kinds[rng.integers(3)], kinds[rng.integers(3)])
    mask[rng.random(rows) < 0.1] = False
    return torch.from_numpy(mask)


ID_TYPES = [torch.int32, torch.int64]
# One that is non-zero in its highest bits only.
MASK_TYPES = [
    (torch.bool, 1),
    (torch.uint8, 128),
    (torch.int32, 1 << 30),
    (torch.int64, 1 << 40),
]


@pytest.mark.parametrize("shape", [(1, 1), (70, 20), (33, 130), (2, 128), (3, 1200)], ids=str)
def test_unpad_equals_reference(library, rng, shape):
    rows, width = shape
    n = rows * width
    state = torch.zeros(rows + 2, dtype=torch.int64)
    for id_type in ID_TYPES:
        for mask_type, true in MASK_TYPES:
            ids = torch.from_numpy(rng.integers(0, 5, shape)).to(id_type)
            mask = random_mask(rng, rows, width)
            n_tokens = int(mask.sum())
            pad_id = [1, 0, None][rng.integers(3)]
            capacity = [n, n_tokens, int(rng.integers(n + 1)), n_tokens // 2][rng.integers(4)]
            expected = unpad_ref(ids, mask, pad_id, capacity)
            found = unpad(library, ids, mask.to(mask_type) * true, pad_id, capacity, state)
            for a, b in zip(found, expected, strict=True):
                assert torch.equal(a, b)


@pytest.mark.parametrize("fill", [True, False])
def test_rows_all_real_or_all_masked(library, rng, fill):
    ids = torch.from_numpy(rng.integers(0, 5, (40, 33)))
    mask = torch.full((40, 33), fill)
    state = torch.zeros(42, dtype=torch.int64)
    found = unpad(library, ids, mask, 1, ids.numel(), state)
    for a, b in zip(found, unpad_ref(ids, mask, 1, ids.numel()), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("row", [1, 31, 32, 33, 64, 65, 200])
def test_look_back_over_many_rows_in_flight(library, rng, row):
    own, prefix = 1 << 32, 2 << 32
    tokens = torch.from_numpy(rng.integers(0, 9000, row + 1))
    for known in {0, row - 1, row - 32, row - 33, row // 2} & set(range(row)):
        words = own + tokens
        words[known] = prefix + tokens[: known + 1].sum()
        words[:known] = own + 12345  # nobody asks for it
        before = torch.full((1,), POISON, dtype=torch.int32)
        call(library.emulated_look_back, words, row, before)
        assert before.item() == tokens[:row].sum()


def test_look_back_ends_at_a_known_prefix(library, rng):
    before, rows = library.words_read(), 300
    ids = torch.ones(rows, 1, dtype=torch.int32)
    unpad(library, ids, ids, 1, rows, torch.zeros(rows + 2, dtype=torch.int64))
    assert library.words_read() - before <= 32 * rows  # with no prefix about 150 for each row


def test_id_beyond_32_bits_is_no_valid_one(library, rng):
    ids = torch.tensor([[5, 2**32 + 5, -(2**40), 2**31 - 1]])
    state = torch.zeros(3, dtype=torch.int64)
    found = unpad(library, ids, ids != 0, 2**30, 4, state)
    assert found[0].tolist() == [5, -1, -1, 2**31 - 1]


@pytest.mark.parametrize("channels", [1, 2, 8, 40, 513, 1024])
@pytest.mark.parametrize("dtype", [torch.int8, torch.float16, torch.float32], ids=str)
def test_rows_go_to_and_fro(library, rng, dtype, channels):
    rows, width = int(rng.integers(1, 9)), int(rng.integers(1, 20))
    mask = random_mask(rng, rows, width)
    n = mask.numel()
    capacity = [n, int(mask.sum()), int(rng.integers(n + 1))][rng.integers(3)]
    slots = unpad_ref(mask.int(), mask, None, capacity)[4]
    if capacity and rng.random() < 0.5:  # rows beyond the packed ones, which the caller misstated
        capacity -= 1
    bytes_per_row = channels * dtype.itemsize
    hidden = torch.randn(rows, width, channels).mul(50).to(dtype)
    packed = Guarded((capacity, channels), dtype)
    args = (slots, packed.inner, n, capacity, bytes_per_row)
    call(library.emulated_gather_rows, hidden, *args)
    # A row that neither a token nor a dummy names stays as it was.
    named = torch.where(slots < -1, -2 - slots, slots)
    named = named[(named >= 0) & (named < capacity)].long()
    assert torch.equal(packed.checked()[named], pack_rows_ref(hidden, slots, capacity)[named])

    source = torch.randn(capacity, channels).mul(50).to(dtype)
    padded = Guarded((rows, width, channels), dtype)
    args = (slots, padded.inner, n, capacity, bytes_per_row)
    call(library.emulated_scatter_rows, source, *args)
    assert torch.equal(padded.checked(), pad_rows_ref(source, slots))


@pytest.mark.parametrize(("start", "to"), [(0, 1), (4, 0), (1, 4), (16, 16)])
def test_rows_at_unaligned_addresses(library, rng, start, to):
    slots = torch.arange(12, dtype=torch.int32).flip(0).view(3, 4)
    source = torch.from_numpy(rng.integers(-99, 99, 12 * 32 + start, np.int8))[start:]
    for function in (library.emulated_gather_rows, library.emulated_scatter_rows):
        out = Guarded((12 * 32 + to,), torch.int8)
        call(function, source, slots.contiguous(), out.inner[to:], 12, 12, 32)
        assert torch.equal(out.checked()[to:].view(12, 32), source.view(12, 32).flip(0))


def test_the_emulator_sees_a_block_waiting_for_ever(library, rng):
    """Words of another launch's state: the rows before are never published as far as they go."""
    ids = torch.ones(4, 8, dtype=torch.int32)
    state = torch.zeros(6, dtype=torch.int64)
    state[0] = 1  # the ticket of row 0 is gone
    library.set_patience(300)
    with pytest.raises(AssertionError, match="unpad_ids_kernel: blocks wait for one another"):
        unpad(library, ids, ids, 1, 32, state)
    library.set_patience(60_000)


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_sanitizers_find_nothing(tmp_path, sanitizer):
    if CXX is None:
        pytest.skip("needs g++")
    program, source = tmp_path / "pad", str(HERE / "pad_main.cpp")
    options = [
        "-O0",  # compiles in half the time, and nothing is optimised away
        "-g1",
        f"-fsanitize={sanitizer}",
        "-fno-sanitize-recover=all",
    ]
    built = subprocess.run(
        [CXX, *COMPILE, *options, source, "-o", str(program)], capture_output=True, text=True
    )
    if "cannot find" in built.stderr:
        pytest.skip(f"g++ has no -fsanitize={sanitizer} here")
    assert built.returncode == 0, built.stderr
    seed = str(int(np.random.SeedSequence().entropy % 2**31))
    done = subprocess.run([program, seed], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"seed {seed}\n{done.stdout}{done.stderr}"


@pytest.fixture(scope="module")
def machine_code(tmp_path_factory) -> Path:
    """pad.o as setup.py has it made: for 80 and 90a."""
    if NVCC is None:
        pytest.skip("needs nvcc")
    path = tmp_path_factory.mktemp("nvcc") / "pad.o"
    targets = re.findall(r"-gencode=[\w=,]+", (ROOT / "setup.py").read_text())
    assert {t.rpartition("=")[2] for t in targets} == {"sm_80", "compute_80", "sm_90a"}
    command = [NVCC, "-O3", "-std=c++17", *targets, "-Werror", "all-warnings"]
    subprocess.run([*command, "-c", str(CUDA / "pad.cu"), "-o", str(path)], check=True)
    return path


def cuobjdump(*args: object) -> str:
    triton = pytest.importorskip("triton")
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    return subprocess.run(list(map(str, (tool, *args))), capture_output=True, text=True).stdout


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_no_spills_and_full_occupancy(machine_code, arch):
    usage = cuobjdump("-res-usage", "-arch", arch, machine_code)
    found = re.findall(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    names = [name for name, *_ in found]
    assert sum("unpad_ids_kernel" in n for n in names) == 6  # id by mask
    assert sum("gather_rows_kernel" in n for n in names) == 3
    assert sum("scatter_rows_kernel" in n for n in names) == 3
    for name, registers, stack, local in found:
        print(name, registers)
        assert int(stack) == int(local) == 0
        # 65,536 registers: 2,048 threads at 32, 1,024 at 64
        assert int(registers) <= (64 if "unpad" in name else 32)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_rows_move_by_16_bytes_with_four_loads_in_flight(machine_code, arch):
    functions = re.split(r"Function : ", cuobjdump("-sass", "-arch", arch, machine_code))[1:]
    wide = [f for f in functions if "rows_kernelI5uint4E" in f.partition("\n")[0]]
    assert len(wide) == 2
    for function in wide:
        moves = re.findall(r"(LDG|STG)\.E\.128", function)
        assert "LDG LDG LDG LDG STG STG STG STG" in " ".join(moves)
