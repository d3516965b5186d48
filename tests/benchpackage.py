"""Import this before `bench`: the package without the repository's root on sys.path.

There `kernels` would shadow another package.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

if "bench" not in sys.modules:
    file = Path(__file__).parents[1] / "bench" / "__init__.py"
    spec = importlib.util.spec_from_file_location(
        "bench", file, submodule_search_locations=[str(file.parent)]
    )
    assert spec and spec.loader
    sys.modules["bench"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["bench"])
