import numpy as np
import pytest
import torch
from launch import driver, instructions, machinecode, runtime, shipped

from m3fast.runner import buckets
from m3fast.runner.base import Outputs


@pytest.mark.slow
@pytest.mark.parametrize("case", shipped.cases(90), ids=lambda case: case.name)
def test_shipped(case):
    machinecode.check(case, 90)


@pytest.mark.slow
def test_maxsim_instructions():
    instructions.check_maxsim(90)


@pytest.mark.slow
def test_early_kernels_wait():
    instructions.check_early()


@pytest.mark.slow
def test_spills_are_seen():
    instructions.check_spills_are_seen(90)


@pytest.fixture(scope="module")
def known() -> set[str]:
    """Hashes of all that ships."""
    cases = [machinecode.launch(case, 90) for case in shipped.cases(90)]
    return {report.kernel.hash for reports in cases for report in reports.values()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pooling", "dtype"),
    [("cls", torch.bfloat16), ("mean", torch.float16), ("mcls", torch.float32)],
    ids=str,
)
def test_nothing_compiles_after_warmup(pooling, dtype, known, monkeypatch):
    """BGE-M3's runner: 20 random batches of random outputs; all it launches is a shipped case."""
    seed = int(np.random.SeedSequence().entropy % 2**31)
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    if pooling != "cls":  # all buckets once: to move so many zeros takes seconds
        monkeypatch.setattr(buckets, "BUCKETS", buckets.BUCKETS[:10:3])
    only = [runtime.ALL] + [Outputs(*row) for row in np.eye(3, dtype=bool).tolist()]
    with (
        driver.active(90),
        driver.recorded() as launched,
        runtime.runner(pooling, dtype) as runner,
    ):
        options = runtime.options(pooling)
        runner.warmup(runtime.ALL, options)
        before, warm = driver.counts(), {kernel.hash for kernel in launched}
        with driver.compiled() as names:
            for i, lengths in enumerate(runtime.batches(rng, 20)):
                runner.submit(runtime.texts(lengths), only[i % 4], options)()
        # Compiled, or launched for the first time here: other tests' launches hide compilations.
        assert not names and not [k.name for k in launched if k.hash not in warm]
        assert driver.counts()["launches"] > before["launches"] + 20 * 4
        assert driver.counts()["modules"] == before["modules"]
    assert {kernel.name for kernel in launched if kernel.hash not in known} == set()
