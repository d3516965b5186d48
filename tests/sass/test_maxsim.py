"""What no test of values can see on a CPU: the instructions that MaxSim relies on."""

import pytest
from sass import compiling, shipped_maxsim


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90])
def test_instructions(arch):
    """Maxima keep NaN; 8 bits become 16 without the quarter-rate conversions; fp32 stays fp32."""
    kernels = {kernel.name: kernel for kernel in shipped_maxsim.kernels(arch)}
    how, tile = ("descriptors", "256x32") if arch == 90 else ("pointers", "128x32")
    types = ["fp16·fp16", "i8·fp16", "i8·bf16"] + ["fp8e4nv·fp16", "fp8e4nv·bf16"] * (arch == 90)
    for name in types:
        report = compiling.build(kernels[f"maxsim {how} {name} {tile} d 1024"], arch)
        assert "FMNMX.NAN" in report.sass, name
        conversions = report.count("I2F") + report.count("F2F")
        assert conversions < 8, name  # an integer division has one, a tile of products 64
    report = compiling.build(kernels["maxsim pointers fp32·fp32 32x32 d 1024"], arch)
    assert report.count("FFMA") and not report.count("HMMA")
