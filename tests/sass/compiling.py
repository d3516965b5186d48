"""Triton kernels to machine code with no GPU, and what that code shows."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}  # bytes of shared memory a block may take


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
    sass: str

    def count(self, instruction: str) -> int:
        return len(re.findall(rf"\b{instruction}\b", self.sass))

    @property
    def spills(self) -> int:
        return self.count("LDL") + self.count("STL")


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
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _run("cuobjdump", "-res-usage", file.name)
        sass = _run("cuobjdump", "-sass", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    return Report(int(found[1]), int(found[2]), compiled.metadata.shared, sass)


def _run(tool: str, *args: str) -> str:
    return subprocess.run([BIN / tool, *args], check=True, capture_output=True, text=True).stdout


def check(kernel: Kernel, arch: int) -> Report:
    """Build, and hold the machine code to the rules: no spills, within limits, on tensor cores."""
    report = build(kernel, arch)
    assert report.spills == 0, f"{kernel.name}: {report.spills} local-memory instructions"
    assert report.shared <= SHARED_LIMIT[arch], f"{kernel.name}: {report.shared} bytes shared"
    if kernel.mma:
        assert report.count(kernel.mma), f"{kernel.name}: no {kernel.mma} in its machine code"
    if kernel.tma:
        assert report.count("UTMALDG"), f"{kernel.name}: no TMA load in its machine code"
    return report
