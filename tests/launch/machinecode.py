"""What the machine code of launched kernels shows, and the rules it is held to."""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import triton
from launch import driver, versions
from launch.shipped import Case
from triton.compiler import CompiledKernel

BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
OPERATIONS = {"LDL": 0x183, "STL": 0x187, "HMMA": 0x03C, "HGMMA": 0x1F0, "UTMALDG": 0x1B4}


@dataclass(frozen=True)
class Report:
    """One kernel as it was loaded."""

    kernel: CompiledKernel

    @property
    def registers(self) -> int:
        return self.kernel.n_regs

    @property
    def stack(self) -> int:
        """Bytes of a thread's local memory."""
        return 4 * self.kernel.n_spills

    @property
    def shared(self) -> int:
        return self.kernel.metadata.shared

    @cached_property
    def operations(self) -> Counter[str]:
        """How often each of OPERATIONS stands in the machine code.

        Read from the code itself: an instruction has 16 bytes, its operation in the lowest 9 bits.
        The disassembler takes as long as the whole compilation.
        """
        cubin = self.kernel.asm["cubin"]
        start = struct.unpack_from("<Q", cubin, 0x28)[0]
        size, n_sections = struct.unpack_from("<HH", cubin, 0x3A)
        found: Counter[str] = Counter()
        for i in range(n_sections):
            header = struct.unpack_from("<IIQQQQ", cubin, start + i * size)
            flags, at, length = header[2], header[4], header[5]
            if flags & 4:  # executable
                words = np.frombuffer(cubin, "<u8", length // 8, at)[::2] & 0x1FF
                found.update({n: int((words == code).sum()) for n, code in OPERATIONS.items()})
        return found

    @cached_property
    def sass(self) -> str:
        """What the disassembler makes of it."""
        return self.cuobjdump("-sass")

    def cuobjdump(self, what: str) -> str:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(self.kernel.asm["cubin"])
            file.flush()
            command = [BIN / "cuobjdump", what, file.name]
            return subprocess.run(command, check=True, capture_output=True, text=True).stdout

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


def launch(case: Case, arch: int) -> dict[str, Report]:
    """Call it on `arch`: the kernels it launches, the first by the case's name.

    Each is compiled as the op asked for, loaded and launched over a libcuda that checks all of it.
    """
    with driver.active(arch), driver.recorded() as launched:
        case.call()
    assert {kernel.src.fn for kernel in launched} == set(case.kernels), case.name
    versions = {kernel.hash: kernel for kernel in launched}
    assert len(versions) == len(case.kernels), f"{case.name}: several versions of a kernel"
    return {
        case.name + (kernel.src.fn != case.kernels[0]) * f": {kernel.name}": Report(kernel)
        for kernel in versions.values()
    }


def check(case: Case, arch: int) -> dict[str, Report]:
    """Launch, and hold the machine code to the rules: no spills but known ones, tensor cores."""
    reports = launch(case, arch)
    for name, report in () if case.spills else reports.items():
        assert not report.spills_in_loops, f"{name}: local memory in an inner loop"
        allowed = versions.spills(arch, name)
        if allowed is not None:
            assert report.spills <= allowed, f"{name}: {report.spills} on local memory"
            assert allowed or not report.stack, f"{name}: {report.stack} bytes of stack"
    operations = reports[case.name].operations
    if case.mma:
        assert operations[case.mma], f"{case.name}: no {case.mma} in its machine code"
    assert bool(operations["UTMALDG"]) == case.tma, f"{case.name}: loads by TMA: {not case.tma}"
    return reports
