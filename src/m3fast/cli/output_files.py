"""Checks of files that a command will write, before its work starts."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from m3fast.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

NEEDED = "needs matplotlib: pip install 'm3fast[demo]'"


def check_output(flag: str, file: Path | None) -> None:
    """InputError naming the flag where no file can be written; None is always right."""
    if file is None:
        return
    if not file.parent.is_dir():
        raise InputError(f"{flag}: expected an existing folder, found {str(file.parent)!r}")
    if file.is_dir():
        raise InputError(f"{flag}: expected a file, found the folder {str(file)!r}")


def can_plot() -> bool:
    """Whether matplotlib is here."""
    return importlib.util.find_spec("matplotlib") is not None


def check_plot(file: Path | None) -> None:
    """`check_output` of --plot, which also wants .png and matplotlib."""
    check_output("--plot", file)
    if file is None:
        return
    if file.suffix.lower() != ".png":
        raise InputError(f"--plot: expected .png, found {str(file)!r}")
    if not can_plot():
        raise InputError(f"--plot: {NEEDED}")
