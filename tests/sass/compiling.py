"""Triton kernels to machine code with no GPU, and what that code shows."""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import triton
from sass import versions
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}  # bytes of shared memory a block may take
OPERATIONS = {"LDL": 0x183, "STL": 0x187, "HMMA": 0x03C, "HGMMA": 0x1F0, "UTMALDG": 0x1B4}


@dataclass(frozen=True)
class Kernel:
    """One compilation that ships.

    Attributes:
        name: op, dtype, shape class; unique within an architecture.
        fn: the @triton.jit function.
        signature: Triton type of each run-time argument, such as "*fp16", "i32" or
            "tensordesc<fp16[64, 64]>"; what is missing from it is a constexpr.
        constexprs: value of each constexpr argument.
        unaligned: pointers and integers not known to be multiples of 16. Give every integer that
            the launcher declares in do_not_specialize.
        mma: the tensor-core instruction it must contain: "HGMMA", "HMMA", or "" for none.
        tma: it must load by TMA.
    """

    name: str
    fn: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    warps: int = 4
    stages: int = 1
    unaligned: tuple[str, ...] = ()
    mma: str = ""
    tma: bool = False


@dataclass(frozen=True)
class Report:
    registers: int
    stack: int
    shared: int
    cubin: bytes

    @cached_property
    def operations(self) -> Counter[str]:
        """How often each of OPERATIONS stands in the machine code.

        Read from the code itself: an instruction has 16 bytes, its operation in the lowest 9 bits.
        The disassembler takes as long as the whole compilation.
        """
        start = struct.unpack_from("<Q", self.cubin, 0x28)[0]
        size, n_sections = struct.unpack_from("<HH", self.cubin, 0x3A)
        found: Counter[str] = Counter()
        for i in range(n_sections):
            header = struct.unpack_from("<IIQQQQ", self.cubin, start + i * size)
            flags, at, length = header[2], header[4], header[5]
            if flags & 4:  # executable
                words = np.frombuffer(self.cubin, "<u8", length // 8, at)[::2] & 0x1FF
                found.update({n: int((words == code).sum()) for n, code in OPERATIONS.items()})
        return found

    @cached_property
    def sass(self) -> str:
        """What the disassembler makes of it."""
        return _cuobjdump("-sass", self.cubin)

    def count(self, instruction: str) -> int:
        """As disassembled."""
        return len(re.findall(rf"\b{instruction}\b", self.sass))

    @property
    def spills(self) -> int:
        return self.operations["LDL"] + self.operations["STL"]

    @property
    def spills_in_loops(self) -> int:
        """Those within a loop that has no other loop in it."""
        if not self.spills:
            return 0
        code = re.findall(r"/\*([0-9a-f]{4,})\*/ +(.*?);", self.sass)
        lines = [(int(address, 16), text) for address, text in code]
        jumps = [(a, int(m[1], 16)) for a, t in lines if (m := re.search(r"BRA.* 0x(\w+)", t))]
        loops = [(to, at) for at, to in jumps if to < at]
        inner = [
            x for x in loops if not any(x != y and x[0] <= y[0] <= y[1] <= x[1] for y in loops)
        ]
        local = [a for a, text in lines if re.search(r"\b(LDL|STL)\b", text)]
        return sum(any(start <= a <= end for start, end in inner) for a in local)


def build(kernel: Kernel, arch: int) -> Report:
    """Compile for sm_<arch> and read the machine code back."""
    names = kernel.fn.arg_names
    signature = {n: kernel.signature.get(n, "constexpr") for n in names}
    missing = {n for n in names if n not in kernel.signature} - kernel.constexprs.keys()
    assert not missing, f"{kernel.name}: no value for {missing}"
    attrs = {
        (i,): [["tt.divisibility", 16]]
        for i, n in enumerate(names)
        if n not in kernel.unaligned and signature[n].startswith(("*", "i"))
    }
    constexprs = {(names.index(n),): v for n, v in kernel.constexprs.items()}
    source = ASTSource(kernel.fn, signature, constexprs, attrs)
    options = {"num_warps": kernel.warps, "num_stages": kernel.stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    cubin = compiled.asm["cubin"]
    usage = re.search(r"REG:(\d+) STACK:(\d+)", _cuobjdump("-res-usage", cubin))
    assert usage, f"{kernel.name}: cuobjdump tells no usage"
    return Report(int(usage[1]), int(usage[2]), compiled.metadata.shared, cubin)


def _cuobjdump(what: str, cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [BIN / "cuobjdump", what, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def check(kernel: Kernel, arch: int) -> Report:
    """Build, and hold the machine code to the rules: no spills but known ones, within limits, on
    tensor cores."""
    report = build(kernel, arch)
    assert not report.spills_in_loops, f"{kernel.name}: local memory in an inner loop"
    allowed = versions.spills(arch, kernel.name)
    if allowed is not None:
        assert report.spills <= allowed, f"{kernel.name}: {report.spills} on local memory"
        assert allowed or not report.stack, f"{kernel.name}: {report.stack} bytes of stack"
    assert report.shared <= SHARED_LIMIT[arch], f"{kernel.name}: {report.shared} bytes shared"
    if kernel.mma:
        assert report.operations[kernel.mma], f"{kernel.name}: no {kernel.mma} in its machine code"
    if kernel.tma:
        assert report.operations["UTMALDG"], f"{kernel.name}: no TMA load in its machine code"
    return report
