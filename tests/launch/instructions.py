"""What no test of values can see on a CPU, nor any rule that holds for all kernels."""

from __future__ import annotations

import re
from dataclasses import replace

import torch
from launch import machinecode, shipped_attention, shipped_linear, shipped_maxsim
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


def check_early() -> None:
    """A kernel that begins early waits once, before it touches what the one ahead has written.

    Products fetch weights before that, and let the next kernel begin only after it.
    """
    cases = [*shipped_linear.cases(90), *shipped_attention.cases(90)]
    names = ("linear up bf16 rows 32", "linear last bf16 rows 64", "attention bf16 D64 64, early")
    for case in (case for case in cases if case.name in names):
        for report in machinecode.launch(case, 90).values():
            found = re.findall(r"/\*[0-9a-f]{4,}\*/ +(?:@!?U?P\d+ )?([A-Z]\w+)", report.sass)
            assert found.count("ACQBULK") == 1, case.name
            waits, begins = found.index("ACQBULK"), found.index("PREEXIT")
            before, after = set(found[:waits]), set(found[waits:])
            assert not {"STG", "LDGSTS", "UTMALDG"} & before and "STG" in after
            product = report.kernel.name == "linear_kernel"
            assert {"LDGSTS", "LDG"} & after and (waits < begins) == product
            assert ("UBLKPF" in before) == product


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
