"""What no test of values can see on a CPU, nor any rule that holds for all kernels."""

from __future__ import annotations

from dataclasses import replace

from sass import compiling, shipped_maxsim


def check_maxsim(arch: int) -> None:
    """Maxima keep NaN; 8 bits become 16 without the quarter-rate conversions; fp32 stays fp32."""
    kernels = {kernel.name: kernel for kernel in shipped_maxsim.kernels(arch)}
    how, tile = ("descriptors", "256x32") if arch == 90 else ("pointers", "128x32")
    types = ["fp16·fp16", "i8·fp16", "i8·bf16"] + ["fp8e4nv·fp16", "fp8e4nv·bf16"] * (arch == 90)
    for name in types:
        report = compiling.build(kernels[f"maxsim {how} {name} {tile} d 1024"], arch)
        assert "FMNMX.NAN" in report.sass, name
        conversions = report.count("I2F") + report.count("F2F")
        assert conversions < 8, name  # an integer division has one, a tile of products 64
        assert report.operations["UTMALDG"] > 0 or how == "pointers"
        _check_reading(report)
    report = compiling.build(kernels["maxsim pointers fp32·fp32 32x32 d 1024"], arch)
    assert report.count("FFMA") and not report.count("HMMA")


def check_spills_are_seen(arch: int) -> None:
    """One warp has no registers for the products of four and what it loads."""
    kernels = {kernel.name: kernel for kernel in shipped_maxsim.kernels(arch)}
    wide = kernels["maxsim pairs fp16·fp16 128x32 d 1024"]
    report = compiling.build(replace(wide, warps=1, stages=1), arch)
    assert report.spills > 100 and report.stack > 0 and report.spills_in_loops > 10
    assert report.operations["LDL"] and report.operations["STL"] and report.operations["HMMA"]
    _check_reading(report)


def _check_reading(report: compiling.Report) -> None:
    """compiling.py reads operations as the disassembler does."""
    expected = {name: report.count(name) for name in compiling.OPERATIONS}
    assert dict(report.operations) == expected
