"""Makes `bench`, and the helpers beside this file, importable."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.append(str(HERE))
runpy.run_path(str(HERE.parents[1] / "scripts" / "benchpackage.py"))
