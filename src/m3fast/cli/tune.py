"""`m3fast tune`: times the configs of the GPU kernels on this GPU and writes the best ones down."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from m3fast.errors import InputError
from m3fast.kernels import triton_path, tuning
from m3fast.runner import pick_device

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable


def run(args: argparse.Namespace) -> int:
    """Tune, and write the table after each row: a run that is stopped keeps what it has."""
    device = _device(args.device)
    from m3fast.cli.tuned import CASES, Sizes

    unknown = [op for op in args.op if op not in CASES]
    if unknown:
        raise InputError(f"--op: expected one of {', '.join(CASES)}, found {unknown[0]!r}")
    file = Path(args.output) if args.output else tuning.file_for(device)
    rows = tuning.read(file)
    found = 0
    for op in args.op or CASES:
        for case in CASES[op](device, Sizes()):
            row = tuning.tune(
                case.op, case.key, case.configs, case.launch, _seconds,
                keep=keep, same=same, say=print,
            )  # fmt: skip
            if row is not None:
                rows = tuning.merged(rows, [row])
                tuning.save(file, rows)
                found += 1
    print(f"{file}: {found} rows")
    return 0


def keep(result: torch.Tensor) -> torch.Tensor:
    """A copy; what the next config does not write itself shows as NaN."""
    copy = result.clone()
    result.fill_(float("nan") if result.is_floating_point() else -1)
    return copy


def same(first: torch.Tensor, result: torch.Tensor) -> bool:
    """Whether two results of half-precision kernels agree but for the order of their sums."""
    if not first.numel():
        return True
    a, b = first.float(), result.float()
    return bool((a - b).abs().amax() <= 0.02 * a.abs().amax())


def _device(name: str) -> torch.device:
    if not torch.cuda.is_available():
        raise InputError("tune: expected a CUDA device, found none: there is nothing to measure")
    device = pick_device(name)
    if device.type != "cuda":
        raise InputError(f"--device: expected 'cuda[:n]', found {name!r}")
    if reason := triton_path.why_not(device):
        raise InputError(f"tune: expected a GPU that runs the Triton kernels, but {reason}")
    torch.cuda.set_device(device)
    return device


def _seconds(call: Callable[[], Any]) -> float:
    """Median GPU time of one call, with the L2 cache flushed before each."""
    from triton.testing import do_bench

    return float(do_bench(call, warmup=5, rep=40, return_mode="median")) / 1e3  # pyright: ignore
