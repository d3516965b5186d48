"""Python processes of their own, for what needs a fresh one: imports, peak memory, crashes."""

from __future__ import annotations

import os
import subprocess
import sys

from bench.measure import Absent
from bench.report import ROOT


def run(module: str, *arguments: str, timeout: float = 900) -> str:
    """Standard output of `python -m module arguments`, with the repository importable.

    Raises:
        Absent: the child says what it lacks, or a signal killed it.
        RuntimeError: it failed otherwise.
    """
    return python("-m", module, *arguments, timeout=timeout)


def python(*arguments: str, timeout: float = 900) -> str:
    """Standard output of a fresh interpreter with src/ and the repository on its path."""
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": path.rstrip(os.pathsep), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    said = done.stderr.strip().splitlines()[-1:] or [""]
    if done.returncode < 0:
        raise Absent(f"killed by signal {-done.returncode}")
    if said[0].startswith("absent: "):
        raise Absent(said[0].removeprefix("absent: "))
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)[:80]}: {said[0]}")
    return done.stdout
