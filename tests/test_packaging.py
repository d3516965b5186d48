"""What leaves the repository: the sdist, the wheel built from it, and how setup.py says no."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOT_SOURCE = shutil.ignore_patterns(
    ".*", "build", "dist", "*.so", "*.egg-info", "__pycache__", "bench", "tests"
)
MODULE = """
#include <Python.h>
#include "value.h"
int avx2(), avx512();
#ifdef M3FAST_CUDA
int cuda();
constexpr bool has_cuda = true;
#else
int cuda() { return 0; }
constexpr bool has_cuda = false;
#endif
static PyModuleDef def = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1};
PyMODINIT_FUNC PyInit__C() {
    PyObject* m = PyModule_Create(&def);
    PyModule_AddIntConstant(m, "value", VALUE);
    PyModule_AddIntConstant(m, "avx2", avx2());
    PyModule_AddIntConstant(m, "avx512", avx512());
    PyModule_AddIntConstant(m, "has_cuda", has_cuda);
    PyModule_AddIntConstant(m, "cuda", cuda());
    return m;
}
"""
PROBE = "int {name}() {{\n#ifdef {macro}\n  return 1;\n#else\n  return 0;\n#endif\n}}\n"
KERNEL = """
#include <cuda_runtime.h>
__global__ void touch_kernel(int* p) { *p = 1; }
int cuda() { int n; cudaGetDeviceCount(&n); return 7; }
"""


def python(*args: object, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """This interpreter in another folder, with the given environment on top of a clean one."""
    ours = ("PYTHONPATH", "CXX", "M3FAST_CUDA", "M3FAST_CPU_PATH")
    clean = {k: v for k, v in os.environ.items() if k not in ours}
    return subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=cwd,
        env={**clean, **env},
        capture_output=True,
        text=True,
        timeout=500,
    )


def checked(*args: object, cwd: Path, **env: str) -> str:
    done = python(*args, cwd=cwd, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel built from it, in a copy that git would give."""
    copy = tmp_path_factory.mktemp("clone") / "m3fast"
    shutil.copytree(ROOT, copy, symlinks=True, ignore=NOT_SOURCE)
    assert (copy / "src/m3fast/kernels").is_symlink()
    # -O0: what the objects hold is tested elsewhere, and optimising them takes half a minute.
    env = {"M3FAST_CUDA": "0", "CXXFLAGS": "-O0"}
    checked("-m", "build", "--no-isolation", copy, cwd=copy.parent, **env)
    return copy / "dist"


@pytest.fixture(scope="session")
def wheel_names(dist: Path) -> set[str]:
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A project with our setup.py around an extension that compiles in a second."""
    for name in ("csrc/cuda", "src/m3fast", "kernels"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "README.md", "src/m3fast/_version.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "src/m3fast/__init__.py").touch()
    (tmp_path / "kernels/__init__.py").touch()
    (tmp_path / "csrc/value.h").write_text("#define VALUE 1\n")
    (tmp_path / "csrc/bindings.cpp").write_text(MODULE)
    for name, macro in (("avx2", "__AVX2__"), ("avx512", "__AVX512BW__")):
        (tmp_path / f"csrc/probe_{name}.cpp").write_text(PROBE.format(name=name, macro=macro))
    return tmp_path


def build(project: Path, **env: str) -> dict[str, int]:
    checked("setup.py", "-q", "build_ext", "--inplace", cwd=project, **env)
    code = "from m3fast import _C; print({k: v for k, v in vars(_C).items() if k[0] != '_'})"
    return eval(checked("-P", "-c", code, cwd=project, PYTHONPATH=str(project / "src")))


def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def links(markdown: str) -> list[str]:
    """Targets of links and pictures outside code blocks."""
    prose = re.sub(r"^```.*?^```", "", markdown, flags=re.M | re.S)
    return re.findall(r"]\(([^)\s]+)\)", prose)


def refusal(project: Path, **env: str) -> str:
    """The one line that a build which must fail ends with."""
    done = python("-W", "ignore", "setup.py", "-q", "build_ext", "--inplace", cwd=project, **env)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_wheel_holds_every_module_and_nothing_else(wheel_names: set[str]) -> None:
    sources = {"m3fast": ROOT / "src/m3fast", "m3fast/kernels": ROOT / "kernels"}
    expected = {
        f"{package}/{path.relative_to(folder).as_posix()}"
        for package, folder in sources.items()
        for path in folder.rglob("*")
        if path.suffix in (".py", ".json", ".html", ".typed") or "data" in path.parts
        if path.is_file() and (package != "m3fast" or "kernels" not in path.parts)
    }
    extension = {n for n in wheel_names if re.fullmatch(r"m3fast/_C\.[\w.-]+\.(so|pyd)", n)}
    assert len(extension) == 1
    info = {n for n in wheel_names if n.split("/")[0].endswith(".dist-info")}
    assert wheel_names - info - extension == expected
    assert any(n.endswith("/licenses/LICENSE") for n in info)


@pytest.mark.slow
def test_embedded_model_is_small(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        data = [i.file_size for i in archive.infolist() if i.filename.startswith("m3fast/data/")]
    assert 0 < sum(data) <= 32e6


@pytest.mark.slow
def test_description_stands_alone(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = message_from_string(archive.read(name).decode())
    text = metadata.get_payload()
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert links(text) == [t for t in links(readme()) if t.startswith("https://")] != []
    assert "`docs/serving.md`" in text


def test_relative_links_become_text(tiny: Path) -> None:
    (tiny / "README.md").write_text(
        "[a](https://x.y) [b](docs/b.md) [`c.md`](c.md) [d](#d) ![e](e.png) ![f](http://x/f.png)\n"
        "`[g](g.md)`\n\n```\n[h](h.md)\n```\n"
    )
    assert checked("setup.py", "--long-description", cwd=tiny).strip() == (
        "[a](https://x.y) b (`docs/b.md`) `c.md` d  ![f](http://x/f.png)\n"
        "`[g](g.md)`\n\n```\n[h](h.md)\n```"
    )


@pytest.mark.slow
def test_sdist_holds_what_a_build_needs(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {n.partition("/")[2] for n in archive.getnames()}
    csrc = {p.relative_to(ROOT).as_posix() for p in (ROOT / "csrc").rglob("[!.]*") if p.is_file()}
    assert csrc
    assert names >= csrc | {"LICENSE", "setup.py", "pyproject.toml", "kernels/__init__.py"}
    assert not any(n.endswith((".so", ".o", ".pyc")) for n in names)


@pytest.mark.slow
def test_installed_wheel_works_elsewhere(dist: Path, tmp_path: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    target = tmp_path / "site"
    pip = ("-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", target)
    checked(*pip, wheel, cwd=tmp_path)
    code = (
        "import m3fast, m3fast._C, m3fast.kernels, m3fast.kernels.native as native\n"
        "assert native.available, native.why\n"
        "assert m3fast.Engine and m3fast.BGEM3FlagModel\n"
        "print(m3fast.__file__, m3fast._C.__file__, m3fast.kernels.__file__)"
    )
    paths = checked("-P", "-c", code, cwd=tmp_path, PYTHONPATH=str(target)).split()
    assert all(Path(p).is_relative_to(target) for p in paths)


def test_source_tree_imports_through_the_symlink(tmp_path: Path) -> None:
    # -S: no site-packages, so that no editable install can step in.
    code = "import m3fast, m3fast.kernels as k; print(m3fast.__file__, k.__file__)"
    paths = checked("-S", "-P", "-c", code, cwd=tmp_path, PYTHONPATH=str(ROOT / "src")).split()
    assert all(Path(p).is_relative_to(ROOT / "src") for p in paths)


def test_isa_flags_go_by_file_name(tiny: Path) -> None:
    import platform

    built = build(tiny, M3FAST_CUDA="0")
    x86 = platform.machine() in ("x86_64", "AMD64")
    assert (built["avx2"], built["avx512"], built["has_cuda"]) == (x86, x86, 0)


def test_changed_header_is_recompiled(tiny: Path) -> None:
    assert build(tiny)["value"] == 1
    header = tiny / "csrc/value.h"
    header.write_text("#define VALUE 2\n")
    later = header.stat().st_mtime + 5  # the file systems of some machines count whole seconds
    os.utime(header, (later, later))
    assert build(tiny)["value"] == 2


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("nvcc"), reason="needs nvcc")
def test_cuda_half_needs_no_driver(tiny: Path) -> None:
    (tiny / "csrc/cuda/touch.cu").write_text(KERNEL)
    assert build(tiny, M3FAST_CUDA="0")["has_cuda"] == 0
    built = build(tiny, M3FAST_CUDA="auto")
    assert (built["has_cuda"], built["cuda"]) == (1, 7)


def test_unknown_cuda_switch_is_refused(tiny: Path) -> None:
    expected = "error: M3FAST_CUDA must be auto, 0 or 1, got 'yes'"
    assert refusal(tiny, M3FAST_CUDA="yes") == expected


def test_demanded_cuda_without_nvcc_is_refused(tiny: Path) -> None:
    (tiny / "csrc/cuda/touch.cu").write_text(KERNEL)
    line = refusal(tiny, M3FAST_CUDA="1", PATH=str(tiny), CUDA_HOME="", CUDA_PATH="")
    assert line.startswith("error: M3FAST_CUDA=1, but no nvcc")


def test_demanded_cuda_without_kernels_is_refused(tiny: Path) -> None:
    (tiny / "nvcc").touch(mode=0o755)
    line = refusal(tiny, M3FAST_CUDA="1", PATH=str(tiny), CUDA_HOME="", CUDA_PATH="")
    assert line.startswith("error: M3FAST_CUDA=1, but csrc/cuda/ holds no kernels")


def test_missing_compiler_is_named(tiny: Path) -> None:
    line = refusal(tiny, M3FAST_CUDA="0", PATH=str(tiny))
    assert line.startswith("error: m3fast needs a C++17 compiler and found none: install")


def test_broken_source_fails_the_build(tiny: Path) -> None:
    (tiny / "csrc/broken.cpp").write_text("int f( {\n")
    assert refusal(tiny, M3FAST_CUDA="0").startswith("error: m3fast._C did not compile")
