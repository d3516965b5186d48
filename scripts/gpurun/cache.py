"""Compiled kernels and wheels for a machine without a network.

Triton finds a kernel again where the same libtriton.so compiled it for the same architecture and
its files lie at the same path: cached files name each other by whole paths.
"""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

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
