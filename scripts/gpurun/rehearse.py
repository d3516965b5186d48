"""`make gpu-cache` and `make gpu-rehearse`: the same runner and steps where there is no GPU.

Checks and figures run at toy size under Triton's interpreter. Tests compile for sm_90 and launch on
a driver that executes nothing, which fills the cache that travels. What neither shows is printed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpurun import cache, plans, planted
from gpurun.out import TESTS, Out
from gpurun.plans import Phase, Plan
from gpurun.run import about, execute
from gpurun.shards import Shard
from gpurun.steps import Runner, Step

SLOWER = 10.0  # limits where two cores interpret what a GPU runs
LIMIT = 900.0  # seconds of one command
INTERPRETED = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
LAUNCHED = {"M3FAST_LAUNCH": "90", "OMP_NUM_THREADS": "1"}
# FlagEmbedding with what it imports, and two that MaxSim is timed beside.
BROUGHT = ("FlagEmbedding==1.4.2", "datasets", "dill", "multiprocess", "late-interaction-kernels",
           "flash-maxsim")  # fmt: skip
NEVER = (
    "what a GPU computes, and every time",
    "capture and replay of graphs, streams, pinned memory, a device's memory running out",
    "the profiler's view of a GPU, its clocks, its events",
    "peers that need a GPU, compute-sanitizer",
)


def rehearsed(step: Step | Shard) -> Step | Shard:
    """The same step where there is no GPU."""
    limit = min(step.limit * SLOWER, LIMIT)
    if isinstance(step, Shard):
        arguments = list(step.arguments)
        suite = "--benchmark" in arguments
        if suite:  # at toy size
            arguments.remove("--benchmark")
            arguments[arguments.index("cuda")] = "cpu"
        how = INTERPRETED if suite or arguments[0].startswith(plans.FIRST) else LAUNCHED
        return replace(step, arguments=arguments, limit=limit, each=300.0, wrap=(), found=None,
                       environment={**step.environment, **how})  # fmt: skip
    command = list(step.command)
    if step.name == "kernels by share":
        return replace(step, command=[*command, "--smoke"], limit=limit, environment=INTERPRETED)
    if "tune" in command:
        return launched(step.name, "tune")
    return replace(step, limit=limit)


def launched(name: str, *arguments: str) -> Step:
    """Part of what the commands launch, compiled and launched without a GPU."""
    return Step(name, (sys.executable, "-m", "gpurun.launched", *arguments), LIMIT, LAUNCHED)


def make_cache(out: Out) -> int:
    """`make gpu-cache`: kernels and wheels for a machine without a network."""
    shutil.rmtree(cache.THERE, ignore_errors=True)
    cache.ARCHIVE.unlink(missing_ok=True)
    environment = plans.environment()
    found = about(environment)
    plan = replace(plans.tests(out), name="gpu-cache tests", limit=LIMIT)
    status = execute(fill(), out, found, environment)
    status |= execute(plan, out, found, environment, rehearsed)
    print(cache.pack())
    wheels()
    return status | fits()


def wheels() -> None:
    """Packages that the benchmarks compare with and that machine lacks, for its Python."""
    shutil.rmtree(cache.WHEELS, ignore_errors=True)
    platforms = [f"--platform=manylinux{tag}_x86_64" for tag in ("_2_28", "_2_17", "2014")]
    command = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check",
               "--no-deps", "--only-binary=:all:", "--python-version=3.12", "--implementation=cp",
               *platforms, "-d", str(cache.WHEELS), *BROUGHT]  # fmt: skip
    subprocess.run(command, check=True)


def fits() -> int:
    """1 where what travels is too large; says how large it is."""
    size = cache.size()
    word = "at most" if size <= cache.MOST_BYTES else "MORE THAN"
    print(f"tree, kernels and wheels: {size / 2**20:.1f} MiB, {word} {cache.MOST_BYTES >> 20}")
    return int(size > cache.MOST_BYTES)


def rehearse(out: Out) -> int:
    """`make gpu-rehearse`."""
    start = time.monotonic()
    shutil.rmtree(out.folder, ignore_errors=True)
    environment = plans.environment()
    found = about(environment)
    status = check_planted(found)
    status |= execute(fill(), Out(out.folder / "cache"), found, environment)
    for name, make_plan in plans.PLANS.items():
        its = Out(out.folder / name)
        if name == "bench":  # judged by the run before, as there
            shutil.copyfile(out.folder / "tests" / TESTS, its.path(TESTS))
        plan = replace(make_plan(its), limit=LIMIT)
        status |= execute(plan, its, found, environment, rehearsed)
        if wrong := planted.unfit(its):
            status |= 1
            print(f"gpu-{name}: {'; '.join(wrong)}")
    if not cache.ARCHIVE.exists():
        print(cache.pack())
        wheels()
    status |= found_again(out, environment) | fits()
    print("\nnot rehearsed:", *not_rehearsed(out), sep="\n  ")
    print(f"\n{time.monotonic() - start:.0f} s, {'NOT ' * status}all well")
    return status


def not_rehearsed(out: Out) -> list[str]:
    """What nothing here can show, and the tests that were skipped wherever they were."""
    outcomes: dict[str, set[str]] = {}
    for name in ("first", "tests"):
        for line in Out(out.folder / name).lines(TESTS):
            if "test" in line:
                test = line["test"].partition("[")[0]
                outcomes.setdefault(test, set()).add(line["outcome"])
    return [*NEVER, *(test for test, found in outcomes.items() if found == {"skipped"})]


def check_planted(found: Mapping[str, Any]) -> int:
    """Steps that go wrong in each way there is leave what they should, and nothing lives on."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        out = Out(folder / "out")
        execute(planted.plan(folder, 2.0), out, found, planted.environment(folder), say=_nothing)
        wrong = planted.missing(out, folder) + planted.killed(folder / "killed")
    count = f"{len(planted.PLANTED)} steps, {len(planted.OUTCOMES)} tests and a killed runner"
    print(f"planted: {count}: {'; '.join(wrong) or 'all left what they should'}")
    return int(bool(wrong))


def _nothing(line: str) -> None:
    del line


def fill() -> Plan:
    """What the commands compile beside what tests/gpu does, compiled for sm_90."""
    shipped = Step("shipped", (sys.executable, "-m", "launch.fill", "90"), LIMIT, LAUNCHED)
    halves = [launched(f"{name} {i + 1}/2", name, f"{i}/2") for name in ("tune", "engine")
              for i in range(2)]  # fmt: skip
    return Plan("gpu-cache", LIMIT, (Phase((shipped,)), Phase(halves, at_once=2)))


def found_again(out: Out, environment: Mapping[str, str]) -> int:
    """0 where BGE-M3's layers compile nothing, once their kernels were unpacked."""
    shutil.rmtree(cache.TRITON)
    print(cache.unpack())
    before = cache.kernels()
    with Runner(Out(out.folder / "again"), "again", LIMIT, environment) as runner:
        ok = runner.run(launched("found again", "engine", "0/6")).ok
    new = cache.kernels() - before
    print(f"kernels of BGE-M3's layers compiled anew: {new}")
    return int(not ok or new > 0)


COMMANDS = {"cache": make_cache, "rehearse": rehearse}
