"""The outcomes of tests, by which `make gpu-bench` judges its rows."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpurun import cache
from gpurun.out import TESTS, Out


def file(out: Out) -> Path:
    """Where they are: in this folder, or in the last run's."""
    here = out.path(TESTS)
    return here if here.exists() else cache.BROUGHT / TESTS


def known(out: Out, found: Mapping[str, Any]) -> bool:
    """Whether they are there for this card and these sources."""
    path = file(out)
    runs = [(line["tree"], line.get("device")) for line in Out(path.parent).lines(path.name)
            if "tree" in line]  # fmt: skip
    return (found["tree"], found["device"]) in runs


def keep(out: Out) -> None:
    """A copy for a later command with another folder."""
    last = cache.BROUGHT / TESTS
    if out.path(TESTS).exists() and out.path(TESTS).resolve() != last.resolve():
        last.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(out.path(TESTS), last)
