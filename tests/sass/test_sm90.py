import pytest
from sass import compiling, instructions, shipped


@pytest.mark.slow
@pytest.mark.parametrize("kernel", shipped.kernels(90), ids=lambda kernel: kernel.name)
def test_machine_code(kernel):
    compiling.check(kernel, 90)


@pytest.mark.slow
def test_maxsim_instructions():
    instructions.check_maxsim(90)


@pytest.mark.slow
def test_spills_are_seen():
    instructions.check_spills_are_seen(90)
