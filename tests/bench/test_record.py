"""Records say what was measured: the state of the sources, the commit, the card."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from bench.core import record


def write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def test_tree_tells_states_of_the_sources_apart(tmp_path: Path) -> None:
    sources = {"src/m3fast/a/b.py": "1", "kernels/c.py": "2", "kernels/tuned/x.json": "[]",
               "csrc/cuda/d.cu": "3", "csrc/e.h": "4", "csrc/f.cpp": "5"}  # fmt: skip
    root = write(tmp_path, sources)
    before = record.tree(root)
    assert len(before) == 16 and int(before, 16) >= 0
    (root / "src/m3fast/kernels").symlink_to("../../kernels")
    built = {"csrc/e.o": "", "kernels/__pycache__/c.pyc": "", "src/m3fast/_C.so": "",
             "src/m3fast/data/m3fast-tiny/config.json": "{}", "tests/test_a.py": ""}  # fmt: skip
    assert record.tree(write(root, built)) == before
    for name in sources:
        assert record.tree(write(root, {name: "changed"})) != before, name
        assert record.tree(write(root, sources)) == before
    (root / "csrc/e.h").rename(root / "csrc/g.h")
    assert record.tree(root) != before


def test_tree_of_a_copy_that_followed_the_link(tmp_path: Path) -> None:
    root = write(tmp_path, {"kernels/c.py": "2", "src/m3fast/a.py": "1"})
    before = record.tree(root)
    assert record.tree(write(root, {"src/m3fast/kernels/c.py": "2"})) == before


def test_tree_covers_the_repository() -> None:
    found = {f for p in record.SOURCES for f in record.ROOT.glob(p)}
    for name in ("src/m3fast/engine/engine.py", "kernels/gpu/maxsim.py", "csrc/cuda/pad.cu"):
        assert record.ROOT / name in found


@pytest.mark.parametrize(
    ("given", "expected"),
    [("a" * 40, ("a" * 40, False)), ("a" * 40 + "-dirty", ("a" * 40, True))],
)
def test_commit_without_git(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: str, expected: tuple[str, bool]
) -> None:
    monkeypatch.setattr(record, "ROOT", tmp_path)
    monkeypatch.setitem(os.environ, "GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.delenv("M3FAST_COMMIT", raising=False)
    assert record.commit() == ("unknown", True)
    monkeypatch.setenv("M3FAST_COMMIT", given)
    assert record.commit() == expected


def test_a_commit_that_is_said_goes_before_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M3FAST_COMMIT", "b" * 40)
    assert record.commit() == ("b" * 40, False)


def test_cards_have_files_of_their_own() -> None:
    names = ("NVIDIA H100 80GB HBM3", "NVIDIA H200")
    slugs = [record.slug(f"{name}, 132 SMs, sm_90") for name in names]
    assert slugs == ["nvidia-h100-80gb-hbm3", "nvidia-h200"]
