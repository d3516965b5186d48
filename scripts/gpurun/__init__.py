"""What is run on a machine with a GPU, in minutes that cost: docs/gpu.md. Needs no venv."""

import importlib.util
import sys
from pathlib import Path

# Without the repository's root on sys.path, where `kernels` would shadow another package.
if "bench" not in sys.modules:
    _file = Path(__file__).parents[2] / "bench" / "__init__.py"
    _spec = importlib.util.spec_from_file_location(
        "bench", _file, submodule_search_locations=[str(_file.parent)]
    )
    assert _spec and _spec.loader
    sys.modules["bench"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["bench"])
