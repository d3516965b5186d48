"""Runs a plan: its steps, one by one or several at once, then the table of what came of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpurun import cache, plans, shards, table, verdicts
from gpurun.out import BETWEEN, STEPS, TABLE, TESTS, Out
from gpurun.plans import Phase, Plan
from gpurun.shards import Seen, Shard
from gpurun.steps import ROOT, SAYS, Runner, Step

BEGUN = time.monotonic()  # starting counts
ABOUT = """
import json, sys, gpurun, torch
from bench.core import gputime, record
there = torch.cuda.is_available()
commit, dirty = record.commit()
print(json.dumps({"device": gputime.words(torch.device("cuda", 0)) if there else None,
    "clocks": gputime.clocks() if there else {}, "commit": commit, "dirty": dirty,
    "tree": record.tree(), "versions": record.versions(), "python": sys.version.split()[0]}))
"""


def about(environment: Mapping[str, str]) -> dict[str, Any]:
    """Card, commit, sources and versions, as records have them.

    Raises:
        RuntimeError: they cannot be had; the last line of what was said.
    """
    done = subprocess.run(
        [sys.executable, "-c", ABOUT], cwd=ROOT, env={**os.environ, **environment},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no answer"])[-1])
    return json.loads(done.stdout.splitlines()[-1])


def run(command: str, out: Out, only: Sequence[str] = ()) -> int:
    """One command, or `only` some of its steps; 0 where all were well, 2 where it cannot begin."""
    cache.unpack()
    environment = plans.environment()
    try:
        found = about(environment)
        if not found["device"]:
            raise RuntimeError("torch finds no CUDA device")
    except RuntimeError as error:
        return _refused(f"make gpu-{command} needs a CUDA device: {error}")
    if command == "bench" and not verdicts.known(out, found):
        return _refused("make gpu-bench: rows are judged by make gpu-tests, which has not run for "
                        "this card and tree")  # fmt: skip
    if command == "sanitize" and not Path(plans.sanitizer()).exists():
        return _refused("make gpu-sanitize: compute-sanitizer is not installed")
    try:
        plan = plans.PLANS[command](out).only(only)
    except ValueError as error:
        return _refused(f"make gpu-{command}: {error}")
    return execute(plan, out, found, environment, begun=BEGUN)


def _refused(why: str) -> int:
    print(why, file=sys.stderr)
    return 2


def execute(
    plan: Plan,
    out: Out,
    found: Mapping[str, Any],
    environment: Mapping[str, str],
    change: Callable[[Step | Shard], Step | Shard] = lambda step: step,
    say: Callable[[str], None] = lambda line: print(line, flush=True),
    begun: float | None = None,
) -> int:
    """Run a plan's steps, each as `change` makes it; everything is written as it happens.

    Its time counts from `begun` of time.monotonic(), or from now.

    Raises:
        KeyboardInterrupt: it was stopped; what was done is written.
    """
    begun = time.monotonic() if begun is None else begun
    began = datetime.now(UTC).isoformat(timespec="seconds")
    out.line(STEPS, command=plan.name, run=began, **found)
    out.line(TESTS, tree=found["tree"], run=began, device=found["device"])
    versions = found["versions"]
    header = [
        f"{plan.name}: {found['device']}, torch {versions.get('torch')}, "
        f"triton {versions.get('triton')}, Python {found['python']}, commit {found['commit'][:12]}"
        f"{'-dirty' * found['dirty']}, tree {found['tree']}",
        cache.unpack(),
    ]
    say("\n".join(header))
    # What hangs at the end is asked where, and the table is written, within the limit too.
    runner = Runner(out, plan.name, plan.limit - (time.monotonic() - begun) - 2 * SAYS,
                    environment, say)  # fmt: skip
    stopped: KeyboardInterrupt | None = None
    try:
        with runner:
            for phase in plan.phases:
                seen = _phase(runner, phase, change)
                if plan.name == "gpu-tests":
                    shards.complete(runner, seen)
    except KeyboardInterrupt as error:
        stopped = error
    header[-1] += f", {cache.kernels()} kernels now"
    text = table.render(out, header, runner.results, plan.left_out, began)
    out.text(TABLE, text + BETWEEN)
    say("\n" + text)
    if found["device"]:  # a rehearsal's outcomes judge nothing
        verdicts.keep(out)
    if stopped:
        raise stopped
    return int(not all(result.ok for result in runner.results))


def _phase(runner: Runner, phase: Phase, change: Callable[..., Step | Shard]) -> list[Seen]:
    seen: list[Seen] = []
    runner.spare = phase.spare

    def start(step: Step | Shard) -> None:
        step = change(step)
        if isinstance(step, Shard):
            seen.append(shards.run(runner, step))
        else:
            runner.run(step)

    with ThreadPoolExecutor(phase.at_once) as pool:
        try:
            list(pool.map(start, phase.steps))
        except BaseException:
            runner.stop()
            raise
    return seen
