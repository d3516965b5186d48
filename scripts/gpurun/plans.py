"""The steps of each command, most valuable fact first, and the seconds that each may take."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from bench.gpu import order

from gpurun import cache, verdicts
from gpurun.out import KERNELS, RECORDS, TUNED, Out
from gpurun.shards import Shard
from gpurun.steps import ROOT, Step

PYTHON = sys.executable
FOUND = 86  # compute-sanitizer's exit where it found something
# Where most of the seconds are, in parts that take about as long each.
SPLIT = {
    "test_gpurunner": 3, "test_gpurunner_memory": 2, "test_attention": 2, "test_attention_full": 2,
    "test_maxsim": 2, "test_maxsim_full": 2, "test_sparse": 2, "test_linear": 2,
}  # fmt: skip
FIRST = "tests/gpu/first"
SLACK = 1.5  # of a suite's estimate: what comes last is cut off, not what comes first


@dataclass(frozen=True)
class Phase:
    """Steps of which several run at once, and which leave `spare` seconds to what follows."""

    steps: Sequence[Step | Shard]
    at_once: int = 1
    spare: float = 0.0


@dataclass(frozen=True)
class Plan:
    """A command: all of it ends within `limit` seconds.

    Attributes:
        left_out: what it does not do, said at its end.
    """

    name: str
    limit: float
    phases: Sequence[Phase]
    left_out: Sequence[str] = ()

    def only(self, words: Sequence[str]) -> Plan:
        """Of its steps those whose names hold one of `words`; all of them where there are none.

        Raises:
            ValueError: a word is in no name.
        """
        names = [step.name for phase in self.phases for step in phase.steps]
        for word in words:
            if not any(word in name for name in names):
                raise ValueError(f"ONLY: expected part of a step's name, found {word!r}; "
                                 f"{self.name} has {', '.join(names)}")  # fmt: skip
        if not words:
            return self
        phases = [
            replace(phase, steps=[s for s in phase.steps if any(w in s.name for w in words)])
            for phase in self.phases
        ]
        left = f"all steps but those of {', '.join(words)}"
        return replace(self, phases=phases, left_out=(*self.left_out, left))


def environment() -> dict[str, str]:
    """What every step needs. Wheels that were brought along, and others' paths, come last."""
    ours = [ROOT / "src", ROOT / "scripts", ROOT / "tests", cache.SITE]
    paths = [*map(str, ours), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # those of other packages take seconds
        "HF_HUB_OFFLINE": "1",
        "CUDA_HOME": os.environ.get("CUDA_HOME", "/usr/local/cuda"),  # nvcc may be off the PATH
        "TRITON_CACHE_DIR": str(cache.TRITON),
    }


def build() -> Step:
    command = (PYTHON, "-W", "ignore", "setup.py", "-q", "build_ext", "--inplace")
    return Step("build", command, 90)


def check(group: str, limit: float, **more: str) -> Shard:
    """The file of tests/gpu/first that has this group."""
    return Shard(f"check {group}", (file_of(group),), limit, environment=more)


def file_of(group: str) -> str:
    return f"{FIRST}/test_{group.lower()}.py"


def figures(out: Out, suite: str, limit: float, *more: str) -> Shard:
    """A suite of bench/, its rows into records.jsonl.

    A shard, so that a peer which loses CUDA's context costs its own row only.
    """
    arguments = (order.file_of(suite), "--benchmark", "--device", "cuda",
                 "--records", str(out.path(RECORDS).resolve()), *more)  # fmt: skip
    threads = {"OMP_NUM_THREADS": str(os.cpu_count())}
    return Shard(f"bench {suite}", arguments, limit, each=limit, environment=threads)


def first(out: Out) -> Plan:
    code = "import gpurun, runpy; runpy.run_module('bench.gpu.kernels', run_name='__main__')"
    kernels = (PYTHON, "-c", code, "--output", str(out.path(KERNELS).resolve()))
    rows = [figures(out, suite, 2 * limit, "--first", "--no-gate") for suite, limit in order.FIRST]
    return Plan(
        "gpu-first",
        210,
        (
            Phase((build(),)),
            Phase(
                (
                    # 24 layers on the CPU to compare with: the others leave it cores.
                    check("Engine", 60, OMP_NUM_THREADS="8"),
                    *(check(group, 60) for group in ("Ops", "Cuda", "Tma", "Capture")),
                ),
                at_once=5,
                spare=75,
            ),
            Phase((Step("kernels by share", kernels, 50), *rows)),
        ),
    )


def tests(out: Out) -> Plan:
    del out
    files = [file for file in sorted((ROOT / "tests" / "gpu").rglob("test_*.py"))
             if file.stem != "test_train"]  # fmt: skip
    parts = sorted(((SPLIT.get(file.stem, 1), file) for file in files), key=lambda p: -p[0])
    whole = [(count, Shard(file.stem, (str(file.relative_to(ROOT)),), 150))
             for count, file in parts]  # fmt: skip
    shards = [part for count, shard in whole for part in shard.split(count)]
    train = Shard("test_train", ("tests/gpu/test_train.py",), 60)
    return Plan("gpu-tests", 180, (Phase(shards, at_once=8, spare=25), Phase((train,))))


def bench(out: Out) -> Plan:
    more = ("--quick", "--verdicts", str(verdicts.file(out)))
    steps = tuple(figures(out, suite, SLACK * limit, *more) for suite, limit in order.QUICK)
    return Plan("gpu-bench", 210, (Phase(steps),))


def tune(out: Out) -> Plan:
    command = (PYTHON, "-m", "m3fast", "tune", "--seconds", "75",
               "--output", str(out.path(TUNED).resolve()))  # fmt: skip
    return Plan("gpu-tune", 90, (Phase((Step("tune", command, 88),)),))


def sanitizer() -> str:
    return shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"


def sanitize(out: Out) -> Plan:
    del out

    def checked(kind: str, group: str) -> Shard:
        wrap = (sanitizer(), "--tool", kind, "--error-exitcode", str(FOUND), "--print-limit", "20",
                "--target-processes", "all")  # fmt: skip
        # Each tensor its own allocation, so that a read beyond its end is seen.
        apart = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        arguments = (file_of(group), "-k", "not graph")
        return Shard(f"{kind} {group}", arguments, 80, each=60, wrap=wrap, found=FOUND,
                     environment=apart)  # fmt: skip

    steps = tuple(checked(kind, group) for group in ("Cuda", "Ops", "Tma")
                  for kind in ("memcheck", "racecheck"))  # fmt: skip
    left_out = (
        "captured graphs: they need torch's caching allocator, which hides reads beyond an end",
        "the engine as a whole, training, and every test of tests/gpu but first/",
        "initcheck and synccheck",
    )
    return Plan("gpu-sanitize", 90, (Phase(steps, at_once=6),), left_out)


PLANS: dict[str, Callable[[Out], Plan]] = {
    "first": first, "tests": tests, "bench": bench, "tune": tune, "sanitize": sanitize,
}  # fmt: skip
