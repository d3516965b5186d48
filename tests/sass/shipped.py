"""Every kernel that ships, with every config it ships in, for one architecture."""

from __future__ import annotations

import importlib
from pathlib import Path

from sass.compiling import Kernel


def kernels(arch: int) -> list[Kernel]:
    """Those of each `shipped_<op>.py` beside this file, by its own `kernels(arch)`."""
    found = [
        kernel
        for file in sorted(Path(__file__).parent.glob("shipped_*.py"))
        for kernel in importlib.import_module(f"sass.{file.stem}").kernels(arch)
    ]
    names = [kernel.name for kernel in found]
    assert len(set(names)) == len(names), "two kernels of one name"
    return found
