"""What no test of values can see on a CPU, nor any rule that holds for all kernels."""

from __future__ import annotations

import re
from dataclasses import replace

import torch
from launch import machinecode, shipped_maxsim
from launch.machinecode import Report

from m3fast.kernels.gpu.maxsim_config import default_config


def check_maxsim(arch: int) -> None:
    """Maxima keep NaN; 8 bits become 16 without the quarter-rate conversions; fp32 stays fp32."""
    how, tile = ("descriptors", "256x32") if arch == 90 else ("pointers", "128x32")
    types = ["fp16·fp16", "i8·fp16", "i8·bf16"] + ["fp8e4nv·fp16", "fp8e4nv·bf16"] * (arch == 90)
    for name in types:
        report = _launch(f"maxsim {how} {name} {tile} d 1024", arch)
        assert "FMNMX.NAN" in report.sass, name
        conversions = report.count("I2F") + report.count("F2F")
        assert conversions < 8, name  # an integer division has one, a tile of products 64
        assert report.operations["UTMALDG"] > 0 or how == "pointers"
        _check_reading(report)
    report = _launch("maxsim pointers fp32·fp32 32x32 d 1024", arch)
    assert report.count("FFMA") and not report.count("HMMA")


def check_spills_are_seen(arch: int) -> None:
    """One warp has no registers for the products of four and what it loads."""
    half = torch.float16
    one = replace(default_config(arch, 32, half, tma=False), warps=1, stages=1)
    case = shipped_maxsim.case(arch, one, half, half, 32, pairs=True, tuned=True)
    report = machinecode.launch(case, arch)[case.name]
    assert report.spills > 100 and report.stack > 0 and report.spills_in_loops > 10
    assert report.operations["LDL"] and report.operations["STL"] and report.operations["HMMA"]
    _check_reading(report)


def _launch(name: str, arch: int) -> Report:
    (case,) = (case for case in shipped_maxsim.cases(arch) if case.name == name)
    return machinecode.launch(case, arch)[name]


def _check_reading(report: Report) -> None:
    """Operations are read as the disassembler does, registers and stack as cuobjdump does."""
    expected = {name: report.count(name) for name in machinecode.OPERATIONS}
    assert dict(report.operations) == expected
    usage = re.search(r"REG:(\d+) STACK:(\d+)", report.cuobjdump("-res-usage"))
    assert usage and (report.registers, report.stack) == (int(usage[1]), int(usage[2]))
