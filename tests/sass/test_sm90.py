import pytest
from sass import compiling, shipped


@pytest.mark.slow
@pytest.mark.parametrize("kernel", shipped.kernels(90), ids=lambda kernel: kernel.name)
def test_machine_code(kernel):
    compiling.check(kernel, 90)
