"""`m3fast tune`: times the configs of the GPU kernels on this GPU and saves the best."""

from __future__ import annotations

import math
import random
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from m3fast.cli.tune_cases import CASES, Case, Sizes
from m3fast.errors import InputError
from m3fast.kernels import dispatch, tuning
from m3fast.runner.device import pick_device

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping, Sequence

DROP = 1.25  # times the best, after a round: noise is far less
USED = 0.95  # of --seconds: the rest is for what has begun
# What matters most, first: the op, and what its key holds.
BRIEF: tuple[tuple[str, Mapping[str, str | int]], ...] = (
    ("attention", {"dtype": "torch.bfloat16", "dim": "64", "longest": "longer"}),
    ("attention", {"dtype": "torch.bfloat16", "dim": "64", "longest": "32"}),
    ("linear", {}),
    ("maxsim", {"dtype": "torch.bfloat16", "tokens": 32}),
    ("attention", {"dtype": "torch.bfloat16", "dim": "64", "longest": "64"}),
    ("attention", {"dtype": "torch.bfloat16", "dim": "64", "longest": "128"}),
    ("layernorm", {}),
    ("sparse_csr", {}),
    ("gelu", {}),
    ("maxsim", {"dtype": "torch.bfloat16"}),
)


def run(args: argparse.Namespace) -> int:
    """Tune, and write the table after each row: a run that is stopped keeps what it has."""
    end = math.inf
    if args.seconds is not None:
        if not args.seconds > 0:
            raise InputError(f"--seconds: expected a number above 0, found {args.seconds:g}")
        end = time.monotonic() + USED * args.seconds
    device = _device(args.device)
    unknown = [op for op in args.op if op not in CASES]
    if unknown:
        raise InputError(f"--op: expected one of {', '.join(CASES)}, found {unknown[0]!r}")
    file = Path(args.output) if args.output else tuning.file_for(device)
    rows, about = tuning.read(file), _about(device)
    here = about["device"]
    if others := {row.get("device", here) for row in rows} - {here}:
        raise InputError(f"--output {file}: expected rows of {here}, found {others.pop()}'s")
    every = [case for op in args.op or CASES for case in CASES[op](device, Sizes())]
    timed = args.seconds is not None
    cases = brief(every) if timed else every
    found, left = 0, []
    for case in cases:
        now = time.monotonic()
        if now > end:
            left.append((case, len(case.configs)))
            continue
        until = now + (end - now) / 2  # where each config is compiled the first key would take all
        row = tuning.tune(
            case.op, case.key, _mixed(case.configs) if timed else case.configs, case.prepare(),
            partial(_seconds, warmup=2, rep=15) if timed else _seconds,
            drop=DROP if timed else math.inf,
            time_is_up=lambda until=until: time.monotonic() > until,
            keep=keep, same=same, say=print,
        )  # fmt: skip
        if row is not None:
            if row.get("untried"):
                left.append((case, row["untried"]))
            rows = tuning.merged(rows, [row | about])
            tuning.save(file, rows)
            found += 1
    for case, count in left:
        print(f"left out: {case.op} {tuning.words(case.key)}: {count} configs not tried")
    if rest := [len(case.configs) for case in every if case not in cases]:
        print(f"left out: {len(rest)} other keys of {sum(rest)} configs: without --seconds all run")
    print(f"{file}: {found} rows")
    return 0


def restricted(device: torch.device, tokens: int = 32) -> list[Case]:
    """What `--seconds` tries at most, on small inputs: to compile it, there or without a GPU.

    For each case launch = case.prepare(), and launch(config) for each of case.configs.
    """
    sizes = replace(Sizes(), tokens=tokens, few=tokens, documents=2)
    return brief([case for op in CASES for case in CASES[op](device, sizes)])


def brief(cases: Sequence[Case]) -> list[Case]:
    """Those of `cases` that BRIEF names, in its order, each once."""
    found: list[Case] = []
    for op, key in BRIEF:
        found += [
            case
            for case in cases
            if case.op == op and key.items() <= case.key.items() and case not in found
        ]
    return found


def _mixed(configs: Sequence[Any]) -> list[Any]:
    """The default, then the others in no order, so that any number of them is a sample of all."""
    first, *others = configs
    return [first, *random.Random(0).sample(others, len(others))]


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
    if reason := dispatch.why_not(device):
        raise InputError(f"tune: expected a GPU that runs the Triton kernels, found that {reason}")
    torch.cuda.set_device(device)
    return device


def _about(device: torch.device) -> dict[str, str]:
    """What a row was measured on."""
    import triton

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"device": name, "torch": torch.__version__, "triton": triton.__version__}


def _seconds(call: Callable[[], Any], warmup: int = 5, rep: int = 40) -> float:
    """Median GPU time of one call, with the L2 cache flushed before each.

    Args:
        warmup, rep: milliseconds of untimed and of timed calls.
    """
    from triton.testing import do_bench

    found = do_bench(call, warmup=warmup, rep=rep, return_mode="median")
    return float(found) / 1e3  # pyright: ignore
