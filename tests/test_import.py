"""What `import m3fast` costs and what the folder kernels/ does to others' imports."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import m3fast

ROOT = Path(__file__).resolve().parents[1]


def run(code: str) -> str:
    """The code in a new interpreter whose sys.path starts with the repository root."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    env["PYTHONPATH"] = str(ROOT / "src")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_loads_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "tokenizers", "triton", "numpy", "scipy", "huggingface_hub")
    assert run(f"import sys, m3fast; print([m for m in {heavy} if m in sys.modules])") == "[]"


@pytest.mark.parametrize("name", m3fast.__all__)
def test_exports_resolve(name: str) -> None:
    assert getattr(m3fast, name) is not None
    assert name in dir(m3fast)


def test_unknown_export_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Enginee'"):
        _ = m3fast.Enginee


def test_version_is_the_one_file() -> None:
    assert m3fast.__version__ == importlib.import_module("m3fast._version").__version__


@pytest.mark.slow
def test_transformers_imports_from_the_repository_root() -> None:
    # Here `import kernels` finds our folder, not the package that transformers looks for.
    code = (
        "import sys, kernels\n"
        "assert not {'torch', 'm3fast'} & set(sys.modules)\n"
        "import transformers.integrations.hub_kernels\n"
        "from transformers import XLMRobertaModel\n"
        "print(kernels.__file__, XLMRobertaModel.__name__)"
    )
    assert run(code) == f"{ROOT / 'kernels/__init__.py'} XLMRobertaModel"
