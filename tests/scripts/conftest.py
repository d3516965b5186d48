"""The modules of scripts/gpurun, which is on no path of the tests."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def gpurun(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from gpurun import cache, out, plans, planted, rehearse, run, shards, steps, table, verdicts

    return SimpleNamespace(cache=cache, out=out, planted=planted, plans=plans, run=run,
                           rehearse=rehearse, shards=shards, steps=steps, table=table,
                           verdicts=verdicts)  # fmt: skip
