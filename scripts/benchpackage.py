"""Import this before `bench`: it makes the package known without the repository's root on sys.path.

There `import kernels` would find our folder instead of Hugging Face's package.
"""

import importlib.util
import sys
from pathlib import Path

if "bench" not in sys.modules:
    _file = Path(__file__).parents[1] / "bench" / "__init__.py"
    _spec = importlib.util.spec_from_file_location(
        "bench", _file, submodule_search_locations=[str(_file.parent)]
    )
    assert _spec and _spec.loader
    sys.modules["bench"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["bench"])
