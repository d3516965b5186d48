"""Import this before `bench`: the package without the repository's root on sys.path.

There `kernels` would shadow another package.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Plugins of other packages take seconds to import, and benchmarks use none of them. On a busy
# machine OpenMP's threads spin for one another: more than half of a smoke round's CPU time.
PLAIN = {
    "PYTHONSAFEPATH": "1",
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}

if "bench" not in sys.modules:
    file = ROOT / "bench" / "__init__.py"
    spec = importlib.util.spec_from_file_location(
        "bench", file, submodule_search_locations=[str(file.parent)]
    )
    assert spec and spec.loader
    sys.modules["bench"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["bench"])


def pytest_of(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`pytest -q` with these arguments, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=ROOT, env=os.environ | PLAIN | environment, capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip
