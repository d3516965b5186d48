import pytest
from sass import compiling, instructions, shipped


@pytest.mark.slow
@pytest.mark.parametrize("kernel", shipped.kernels(80), ids=lambda kernel: kernel.name)
def test_machine_code(kernel):
    compiling.check(kernel, 80)


@pytest.mark.slow
def test_maxsim_instructions():
    instructions.check_maxsim(80)


@pytest.mark.slow
def test_spills_are_seen():
    instructions.check_spills_are_seen(80)
