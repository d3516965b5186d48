"""Installs torch's CPU build where there is no NVIDIA GPU and an index has that build.

PyPI's torch for x86-64 Linux is the CUDA build, some 3 GB. Where no CPU build is found, this says
so and leaves the choice to pip.

    python scripts/cpu_torch.py [URL of an index to ask where pip's own have none]
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"


def main(more: list[str]) -> int:
    if shutil.which("nvidia-smi") or Path("/proc/driver/nvidia").exists():
        return 0
    pinned = re.search(r"^torch==([\d.]+)\.\*", CONSTRAINTS.read_text(), re.MULTILINE)
    if not pinned:
        raise SystemExit(f"{CONSTRAINTS}: no line like torch==2.13.*")
    for asked in [[], *([f"--extra-index-url={url}"] for url in more)]:
        # An index that does not answer is skipped, after one try.
        command = (*PIP, "index", "versions", "torch", "--retries=0", "--timeout=15", *asked)
        offered = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        build = re.search(rf"\b{re.escape(pinned[1])}\.\d+\+cpu\b", offered)  # newest first
        if build:
            install = (*PIP, "install", "-q", *asked, f"-c{CONSTRAINTS}", f"torch=={build[0]}")
            return subprocess.run(install, check=False).returncode
    python = ".".join(map(str, sys.version_info[:2]))
    print(
        f"No CPU build of torch {pinned[1]} for Python {python} in the package index: pip takes "
        "what there is, on Linux a CUDA build of some 3 GB."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
