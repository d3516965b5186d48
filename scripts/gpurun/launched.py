"""`python -m gpurun.launched tune|engine [K/N]`: what commands for a GPU launch, with no GPU.

Compiled for sm_90 and launched on a driver that executes nothing: what `make gpu-tune` may time, of
which K/N takes every N-th case from the K-th on, and BGE-M3's layers at each length class.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from launch import driver


def tune(first: int, parts: int) -> int:
    from m3fast.cli.tune import restricted

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


def engine() -> int:
    from checkpoints import make_checkpoint

    from m3fast import Engine, gpurunner
    from m3fast.errors import NonFiniteError

    # What no kernel writes is read on the way back: counts among it, which must be counts.
    torch.empty, torch.empty_like = torch.zeros, torch.zeros_like
    torch.Tensor.new_empty = torch.Tensor.new_zeros  # type: ignore[method-assign]
    gpurunner.BUCKETS = (32, 64, 128, 256)  # kernels know no bucket, and the CPU multiplies
    bge_m3 = dict(hidden=1024, heads=16, ffn=4096, layers=1, positions=8194)
    with driver.compiled() as names, tempfile.TemporaryDirectory() as folder:
        made = make_checkpoint(Path(folder), **bge_m3)
        for pooling in ("cls", "mcls"):
            its = Engine.from_pretrained(made, device="cpu", dtype="bfloat16", pooling=pooling)
            for length, texts in ((2, 3), (20, 1), (60, 1), (100, 1), (200, 1), (20, 150), (60, 5),
                                  (120, 3), (300, 8)):  # fmt: skip
                ids = [[0, *np.full(length - 2, 7).tolist(), 2]] * texts
                with contextlib.suppress(NonFiniteError):  # nothing is computed
                    its.encode(ids)
    print(f"{len(names)} kernels, {len(set(names))} functions")
    return 0


if __name__ == "__main__":
    driver.activate(90)
    if sys.argv[1] == "engine":
        sys.exit(engine())
    sys.exit(tune(*map(int, (*sys.argv[2:], "0/1")[0].split("/"))))
