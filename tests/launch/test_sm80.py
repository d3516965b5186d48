import pytest
from launch import instructions, machinecode, shipped


@pytest.mark.slow
@pytest.mark.parametrize("case", shipped.cases(80), ids=lambda case: case.name)
def test_shipped(case):
    machinecode.check(case, 80)


@pytest.mark.slow
def test_maxsim_instructions():
    instructions.check_maxsim(80)


@pytest.mark.slow
def test_spills_are_seen():
    instructions.check_spills_are_seen(80)
