"""`python -m gpurun.launched tune|engine [K/N]`: what commands for a GPU launch, with no GPU.

Compiled for sm_90, launched on a driver that executes nothing: what `make gpu-tune` may time, and
layers of the encoders that are tested there. K/N takes every N-th case from the K-th on.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path

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


# Encoders that tests on a GPU make: width, heads, inner width, dtype. BGE-M3's first.
ENCODERS = ((1024, 16, 4096, "bfloat16"), (128, 2, 256, "bfloat16"), (256, 4, 1024, "bfloat16"),
            (64, 2, 96, "bfloat16"), (64, 2, 96, "float32"), (128, 2, 512, "float32"))  # fmt: skip


def engine(first: int, parts: int) -> int:
    """Batches of each length class, few tokens and many, with and without a bucket."""
    from checkpoints import make_checkpoint

    from m3fast import Engine
    from m3fast.errors import NonFiniteError
    from m3fast.runner import buckets

    driver.zero_memory()
    buckets.BUCKETS = (32, 64, 128, 256)  # kernels know no bucket, and the CPU multiplies
    texts = ((2, 3), (20, 1), (60, 1), (100, 1), (200, 1), (20, 150), (60, 5), (120, 3), (300, 8))
    with driver.compiled() as names, tempfile.TemporaryDirectory() as folder:
        for i, (hidden, heads, ffn, dtype) in enumerate(ENCODERS[first::parts]):
            shape = dict(hidden=hidden, heads=heads, ffn=ffn, layers=1, positions=2050)
            made = make_checkpoint(Path(folder) / str(i), **shape)
            for pooling in ("cls", "mean", "mcls"):
                its = Engine.from_pretrained(made, device="cpu", dtype=dtype, pooling=pooling)
                for length, count in texts:
                    ids = [[0, *[7] * (length - 2), 2]] * count
                    with contextlib.suppress(NonFiniteError):  # nothing is computed
                        its.encode(ids)
    print(f"{len(names)} kernels, {len(set(names))} functions")
    return 0


if __name__ == "__main__":
    driver.activate(90)
    part = map(int, (*sys.argv[2:], "0/1")[0].split("/"))
    sys.exit({"tune": tune, "engine": engine}[sys.argv[1]](*part))
