"""`python -m launch.fill 90`: launch every shipped case, so that Triton's cache holds it.

The cache is TRITON_CACHE_DIR's; its binaries fit the same versions of Triton and Python.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

from launch import driver, machinecode, shipped

PROCESSES = 2


def fill(arch: int, say: Callable[[str], None] = print, processes: int = PROCESSES) -> list[str]:
    """Launch the cases of `arch` in so many processes; lines of progress go to `say`.

    Returns:
        A line for each case that failed, its name first.

    Raises:
        ValueError: another arch than 80 or 90.
    """
    if arch not in driver.ARCHS:
        raise ValueError(f"arch: expected 80 or 90, found {arch}")
    driver.build()  # once, before several need it
    start, failed = time.monotonic(), list[str]()
    names = [case.name for case in shipped.cases(arch)]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        jobs = {pool.submit(_launch, arch, i): name for i, name in enumerate(names)}
        for done, job in enumerate(as_completed(jobs), 1):
            error = job.exception()
            if error is not None:
                failed.append(f"{jobs[job]}: {type(error).__name__}: {error}")
            if error is not None or done % 10 == 0 or done == len(jobs):
                seconds = time.monotonic() - start
                say(f"sm_{arch}: {done} of {len(jobs)} in {seconds:.0f} s, {len(failed)} failed")
    return failed


def _launch(arch: int, i: int) -> None:
    machinecode.launch(shipped.cases(arch)[i], arch)


def main() -> int:
    if sys.argv[1:] not in (["80"], ["90"]):
        print("usage: python -m launch.fill 80|90", file=sys.stderr)
        return 2
    failed = fill(int(sys.argv[1]), lambda line: print(line, flush=True))
    for line in failed:
        print(line, file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
