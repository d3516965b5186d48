"""What is brought along to a machine without a network: compiled kernels, and wheels.

Triton finds a kernel again where the same libtriton.so compiled it for the same architecture and
its files lie at the same path: cached files name each other by whole paths.
"""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpurun.out import TESTS, Out
from gpurun.steps import ROOT

BROUGHT = ROOT / "build" / "gpu"  # made here, carried there
ARCHIVE, WHEELS = BROUGHT / "triton.tar.xz", BROUGHT / "wheels"
THERE = Path("/tmp/m3fast-gpu")  # the same path on both machines
TRITON, SITE = THERE / "triton", THERE / "site"
MOST_BYTES = 60 << 20  # tree, cache and wheels together


def unpack() -> str:
    """The kernels to where they were compiled, the wheels beside them, once; a line about it."""
    if WHEELS.exists() and not SITE.exists():
        for wheel in WHEELS.glob("*.whl"):
            zipfile.ZipFile(wheel).extractall(SITE)
    if not ARCHIVE.exists():
        return "no compiled kernels were brought along (make gpu-cache): each is compiled here"
    if not TRITON.exists():
        part = THERE / "part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        with tarfile.open(ARCHIVE) as archive:
            archive.extractall(part, filter="data")
        part.rename(TRITON)
    return f"{kernels()} compiled kernels brought along"


def pack() -> str:
    """The compiled kernels into the archive; a line about it."""
    BROUGHT.mkdir(parents=True, exist_ok=True)
    with tarfile.open(ARCHIVE, "w:xz", preset=3) as archive:
        for folder in sorted(TRITON.iterdir()):
            archive.add(folder, folder.name)
    return f"{kernels()} kernels in {ARCHIVE.relative_to(ROOT)}, {ARCHIVE.stat().st_size >> 10} KiB"


def size() -> int:
    """Bytes of what travels: the tree as git sees it, and what was made for the journey."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    tree = [ROOT / name for name in listed.stdout.split("\0") if name]
    brought = [ARCHIVE, *WHEELS.glob("*.whl")]
    return sum(path.stat().st_size for path in [*tree, *brought] if path.is_file())


def kernels() -> int:
    return sum(1 for _ in TRITON.glob("*/*.cubin"))


def verdicts(out: Out) -> Path:
    """The outcomes of tests that `make gpu-bench` judges by: this folder's, or the last run's."""
    here = out.path(TESTS)
    return here if here.exists() else BROUGHT / TESTS


def judged(out: Out, found: Mapping[str, Any]) -> bool:
    """Whether they are there for this card and these sources."""
    file = verdicts(out)
    here = [(line["tree"], line.get("device")) for line in Out(file.parent).lines(file.name)
            if "tree" in line]  # fmt: skip
    return (found["tree"], found["device"]) in here


def keep_verdicts(out: Out) -> None:
    """For a later command with another folder."""
    last = BROUGHT / TESTS
    if out.path(TESTS).exists() and out.path(TESTS).resolve() != last.resolve():
        last.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(out.path(TESTS), last)
