"""Who may import whom: the contracts of pyproject.toml, and two rules they cannot say."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINT = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(root / "src")}
    return subprocess.run(
        [sys.executable, "-c", LINT], cwd=root, env=env, capture_output=True, text=True
    )


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    for name in ("src", "kernels"):
        ignored = shutil.ignore_patterns("data", "__pycache__", "*.so")
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, `from a import b` as a.b, and import_module("a")."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{'.' * node.level}{node.module or ''}.{a.name}" for a in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
    return found


def test_layers_are_kept() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("kernels/gelu.py", "from m3fast import errors"),
        ("src/m3fast/types.py", "from m3fast.engine.engine import Engine"),
        ("src/m3fast/model/encoder.py", "import m3fast.runner.cpu"),
        ("src/m3fast/aio/worker.py", "from m3fast.aio.dispatch import Dispatcher"),
    ],
)
def test_an_import_from_above_or_in_a_circle_is_caught(clone: Path, path: str, line: str) -> None:
    (clone / path).write_text((clone / path).read_text() + f"\n{line}\n")
    done = lint(clone)
    assert done.returncode == 1
    assert "BROKEN" in done.stdout


def test_a_room_that_is_not_on_the_ladder_is_caught(clone: Path) -> None:
    (clone / "src/m3fast/stray.py").touch()
    assert "m3fast.stray" in lint(clone).stdout


def test_native_alone_imports_the_extension() -> None:
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]
    importers = {p.name for p in files if imports(p) & {"m3fast._C", "._C", ".._C"}}
    assert importers == {"native.py"}


def test_kernels_import_little() -> None:
    allowed = {*sys.stdlib_module_names, "numpy", "torch", "triton"}
    for path in (ROOT / "kernels").rglob("*.py"):
        for name in imports(path) - {"m3fast._C"}:
            ours = name.startswith((".", "m3fast.kernels."))
            assert ours or name.split(".")[0] in allowed, f"{path.name} imports {name}"
