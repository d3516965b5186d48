"""An operation's tests are green before its times count: they run once, before a suite's first row.

Each suite has the tests of what it times, in another process; all of a CPU's take half a minute.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from bench.report import ROOT

TOKENISE = "same_as_transformers or reference_cases or max_length or bad_texts or token_ids"
SERVE = ("tests/server/test_openai.py", "tests/server/test_native.py")
ENCODE = ("tests/test_parity.py", "-k", "test_random_texts or test_lengths_and_batches")
TESTS: dict[str, dict[str, Sequence[str]]] = {
    "cpu": {
        "attention": ("tests/kernels/test_attention.py",),
        "layernorm": ("tests/kernels/test_layernorm.py", "tests/kernels/test_gelu.py"),
        "gemm": ("tests/kernels/test_linear.py",),
        "sparse": ("tests/kernels/test_sparse.py",),
        "maxsim": ("tests/kernels/test_maxsim.py",),
        "packing": ("tests/kernels/test_packing.py", "tests/kernels/test_padding.py"),
        "tokenise": ("tests/test_tokenizer.py", "-k", TOKENISE),
        "serve": SERVE,
        **dict.fromkeys(("encode", "latency", "load", "scaling", "infinity"), ENCODE),
    },
    "cuda": {
        "attention": ("tests/gpu/test_attention.py",),
        "layernorm": ("tests/gpu/test_layernorm.py", "tests/gpu/test_gelu.py"),
        "sparse": ("tests/gpu/test_sparse.py",),
        "maxsim": ("tests/gpu/test_maxsim.py",),
        "packing": ("tests/gpu/test_padding.py",),
        **dict.fromkeys(("encode", "latency", "scaling"), ("tests/gpu/test_gpurunner.py",)),
    },
}  # fmt: skip
SECONDS = 300  # Triton compiles for the tests of a GPU


class Gate:
    """Runs tests of suites, those of several suites once.

    Args:
        open: no tests, every suite counts: `--no-gate`, or a smoke test.
    """

    def __init__(self, device: str, open: bool = False) -> None:
        self._tests = {} if open else TESTS[device]
        self._found: dict[tuple[str, ...], str] = {}

    def waits(self, suite: str) -> bool:
        """Whether `red` will run tests."""
        return suite in self._tests and tuple(self._tests[suite]) not in self._found

    def red(self, suite: str) -> str:
        """`tests/... fail`, or "" where they pass or there are none."""
        arguments = tuple(self._tests.get(suite, ()))
        if arguments and arguments not in self._found:
            self._found[arguments] = run(arguments)
        return self._found.get(arguments, "")


def run(arguments: Sequence[str]) -> str:
    """What is wrong with these tests, as `red` says it."""
    files = " ".join(name for name in arguments if name.endswith(".py"))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider",
             "-m", "not slow", *arguments],
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
