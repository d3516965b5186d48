"""An operation's tests are green before its times count: they run once, before a suite's first row.

Each suite has the tests of what it times, in another process; all of a CPU's take half a minute.
Those of a GPU have run before (`make gpu-tests`): `Proof` can read what came of them.

    {"tree": "<record.tree()>"}                                           a run begins
    {"test": "tests/gpu/test_x.py::test_y[z]", "outcome": "passed", ...}  or skipped, or what is red
    {"file": "tests/gpu/test_x.py", "complete": true}                     each of its tests has one
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.core import record
from bench.core.paths import ROOT

TOKENISE = "same_as_transformers or reference_cases or max_length or bad_texts or token_ids"
SERVE = ("tests/server/routes/test_openai.py", "tests/server/routes/test_encode.py")
ENCODE = ("tests/flag/test_parity.py", "-k", "test_random_texts or test_lengths_and_batches")
RUNNER = "tests/gpu/test_gpurunner.py"
TESTS: dict[str, dict[str, Sequence[str]]] = {
    "cpu": {
        "attention": ("tests/kernels/test_attention.py",),
        "layernorm": ("tests/kernels/test_layernorm.py", "tests/kernels/test_gelu.py"),
        "gemm": ("tests/kernels/test_linear.py", "tests/kernels/test_int8.py"),
        "sparse": ("tests/kernels/test_sparse.py",),
        "maxsim": ("tests/kernels/test_maxsim.py",),
        "packing": ("tests/kernels/test_packing.py", "tests/kernels/test_padding.py"),
        "tokenise": ("tests/text/test_tokenizer.py", "-k", TOKENISE),
        "serve": SERVE,
        **dict.fromkeys(("encode", "latency", "load", "scaling", "infinity"), ENCODE),
    },
    "cuda": {
        "attention": ("tests/gpu/test_attention.py", "tests/gpu/test_attention_plan.py",
                      "tests/gpu/test_attention_full.py"),
        "layernorm": ("tests/gpu/test_layernorm.py", "tests/gpu/test_gelu.py"),
        "sparse": ("tests/gpu/test_sparse.py",),
        "maxsim": ("tests/gpu/test_maxsim.py", "tests/gpu/test_maxsim_tiles.py",
                   "tests/gpu/test_maxsim_full.py"),
        "packing": ("tests/gpu/test_padding.py",),
        **dict.fromkeys(
            ("encode", "latency", "scaling"), (RUNNER, "tests/gpu/test_linear.py")
        ),
    },
}  # fmt: skip
# Tests of a file above that say nothing about whether what is timed is right.
ASIDE = {RUNNER: ("test_what_is_not_finite_is_refused",)}
# Rows of a suite of two operations: the word that the file of their tests has in its name.
OWN = {"test_add_layernorm": "layernorm", "test_embed_layernorm": "layernorm",
       "test_bias_gelu": "gelu"}  # fmt: skip
GREEN = ("passed", "skipped")
SECONDS = 300  # Triton compiles for the tests of a GPU


@dataclass
class Verdicts:
    """What came of tests of one state of the sources, in runs one after the other.

    Attributes:
        outcomes: by test, its last one.
        complete: files whose tests all have one.
    """

    outcomes: dict[str, str] = field(default_factory=dict)
    complete: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, file: Path, tree: str) -> Verdicts:
        """Those of `tree` alone; none where there is no file. A line cut short is passed over."""
        its, here = cls(), False
        for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
            try:
                said = json.loads(line)
            except json.JSONDecodeError:  # its writer was killed
                continue
            if "tree" in said:
                here = said["tree"] == tree
            elif here and "test" in said:
                its.outcomes[said["test"]] = said["outcome"]
            elif here and said.get("complete"):
                its.complete.add(said["file"])
        return its

    def red(self, files: Sequence[str]) -> str:
        """What keeps the tests of these files from being green, or "".

        Those of one file may all be skipped, if some of another have passed.
        """
        of = {file: self._of(file) for file in files}
        proven = any("passed" in outcomes.values() for outcomes in of.values())
        said = []
        for file, its in of.items():
            bad = [f"{name} {outcome}" for name, outcome in its.items() if outcome not in GREEN]
            if bad:
                more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
                said.append(f"{file}: {bad[0]}{more}")
            elif not (its and proven):
                said.append(f"{file}: nothing has run of these sources")
            elif file not in self.complete:
                said.append(f"{file} did not finish")
        return "; ".join(said)

    def _of(self, file: str) -> dict[str, str]:
        """Outcomes of a file's tests, by their names in it, without those of ASIDE."""
        return {
            name.removeprefix(f"{file}::"): outcome
            for name, outcome in self.outcomes.items()
            if name.startswith(f"{file}::")
            and not any(aside in re.split(r"::|\[", name) for aside in ASIDE.get(file, ()))
        }


class Proof:
    """Runs tests of suites, those of several suites once, or reads what came of them.

    Args:
        open: no tests, every suite counts: `--no-gate`, or a smoke test.
        verdicts: of tests/gpu; nothing is run.
    """

    def __init__(self, device: str, open: bool = False, verdicts: Path | None = None) -> None:
        self._tests = {} if open else TESTS["cuda" if verdicts else device]
        self._found: dict[tuple[str, ...], str] = {}
        self._verdicts = verdicts and Verdicts.read(verdicts, record.tree())

    def waits(self, suite: str, row: str = "") -> bool:
        """Whether `red` will run tests."""
        its = self._of(suite, row)
        return bool(its) and not self._verdicts and its not in self._found

    def red(self, suite: str, row: str = "") -> str:
        """`tests/... fail`, or "" where they pass or there are none; a row is a function's name."""
        arguments = self._of(suite, row)
        if arguments and arguments not in self._found:
            its = self._verdicts
            self._found[arguments] = run(arguments) if its is None else its.red(arguments)
        return self._found.get(arguments, "")

    def _of(self, suite: str, row: str) -> tuple[str, ...]:
        return tuple(name for name in self._tests.get(suite, ()) if OWN.get(row, "") in name)


def deselected(file: str) -> list[str]:
    """pytest's arguments that leave out the tests of ASIDE.

    Raises:
        ValueError: the file has no such test, which pytest would not say.
    """
    found = []
    for name in ASIDE.get(file, ()):
        if not re.search(rf"^ *def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.M):
            raise ValueError(f"proof.ASIDE: {file} has no {name}")
        found.append(f"--deselect={file}::{name}")
    return found


def run(arguments: Sequence[str]) -> str:
    """What is wrong with these tests, as `red` says it."""
    files = " ".join(name for name in arguments if name.endswith(".py"))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider",
             "-m", "not slow", *arguments, *(x for name in arguments for x in deselected(name))],
            cwd=ROOT,
            env=os.environ | {"PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"{files} not done after {SECONDS} s"
    if done.returncode == 0:
        return ""
    if done.returncode != 1:  # not collected, or none selected: nothing was proven
        last = (done.stdout + done.stderr).strip().splitlines()[-1:]
        return f"{files} do not run: {''.join(last)[:100]}"
    return f"{files} fail"
