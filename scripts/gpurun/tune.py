"""`python -m gpurun.tune`: compile and launch, with no GPU, what `make gpu-tune` may time.

A process of several, where M3FAST_PART says k/n, takes every n-th case from the k-th on.
"""

from __future__ import annotations

import os
import sys

import torch
from launch import driver

from m3fast.cli.tune import restricted


def main() -> int:
    driver.activate(90)
    first, parts = map(int, os.environ.get("M3FAST_PART", "0/1").split("/"))
    failed: list[str] = []
    done = 0
    for case in restricted(torch.device("cpu"))[first::parts]:
        launch = case.prepare()
        for config in case.configs:
            try:
                launch(config)
            except Exception as error:  # as `m3fast tune`, which leaves out what cannot be
                failed.append(f"{case.op} {config}: {' '.join(str(error).split())[:120]}")
            done += 1
    print(*failed, f"{done} configs launched, {len(failed)} left out", sep="\n")
    return int(len(failed) == done)


if __name__ == "__main__":
    sys.exit(main())
