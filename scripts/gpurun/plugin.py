"""pytest -p gpurun.plugin: every outcome on disk as it happens, a limit for each test, shards.

Variables that gpurun.shards sets:
    M3FAST_OUT      the folder of results (gpurun.out)
    M3FAST_SHARD    a file beside it: lines of what was collected, begun and done
    M3FAST_PART     k/n: every n-th of the tests from the k-th on
    M3FAST_TEST_S   seconds of one test, after which it says where it is and the process ends
"""

from __future__ import annotations

import faulthandler
import os
from pathlib import Path
from typing import Any

import pytest

from gpurun.out import TESTS, Out
from gpurun.shards import BROKEN

LOST = ("CUDA error", "AcceleratorError", "illegal memory access", "device-side assert")
_OUT, _SHARD = Out(Path(os.environ["M3FAST_OUT"])), Path(os.environ["M3FAST_SHARD"])
_STATE = Out(_SHARD.parent)
_SECONDS = float(os.environ.get("M3FAST_TEST_S", "60"))
_STDERR = os.dup(2)  # before pytest captures it
_seconds: dict[str, float] = {}
_bad: dict[str, str] = {}
_skipped: set[str] = set()


def _note(**values: Any) -> None:
    _STATE.line(_SHARD.name, **values)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of the tests that a filter left the part of this shard, without those already done."""
    first, parts = map(int, os.environ.get("M3FAST_PART", "0/1").split("/"))
    mine = items[first::parts]
    _note(collected=[item.nodeid for item in mine])
    done = {line["done"] for line in _STATE.lines(_SHARD.name) if "done" in line}
    items[:] = [item for item in mine if item.nodeid not in done]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Any:
    _note(begun=item.nodeid)
    faulthandler.dump_traceback_later(_SECONDS, exit=True, file=_STDERR)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    name = report.nodeid
    _seconds[name] = _seconds.get(name, 0.0) + report.duration
    if report.failed:
        _bad[name] = report.longreprtext
        said = "".join(f"\n--- {title}\n{text}" for title, text in report.sections)
        _OUT.failure(f"{name} ({report.when})", report.longreprtext + said)
    elif report.skipped:
        _skipped.add(name)
    if report.when != "teardown":
        return
    outcome = "failed" if name in _bad else "skipped" if name in _skipped else "passed"
    why = {"why": _why(_bad[name])} if name in _bad else {}
    _OUT.line(TESTS, test=name, outcome=outcome, seconds=round(_seconds[name], 2), **why)
    _note(done=name, outcome=outcome)
    if any(word in _bad.get(name, "") for word in LOST):
        pytest.exit(f"CUDA's context is lost in {name}", returncode=BROKEN)


def _why(text: str) -> str:
    """The error's first line."""
    lines = [line[1:].strip() for line in text.splitlines() if line.startswith("E ")]
    return (lines or text.splitlines()[-1:] or [""])[0][:200]


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        _OUT.failure(f"{report.nodeid} (collection)", report.longreprtext)
