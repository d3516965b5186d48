"""Builds m3fast._C with ninja: g++ for csrc/*.cpp, nvcc for csrc/cuda/*.cu."""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import PlatformError

HEADERS = sorted(str(p) for p in Path("csrc").rglob("*.*h"))
CPP, CU = (sorted(str(p) for p in Path("csrc").glob(g)) for g in ("*.cpp", "cuda/*.cu"))
FLAGS = "-O3 -std=c++17 -fPIC -fvisibility=hidden -Wall -Wextra"
AVX512 = "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma"
# By file name, on x86-64 only; elsewhere such a file is compiled plain and its #ifdef empties it.
ISA = {
    "_avx2.cpp": "-mavx2 -mfma -mf16c",
    "_avxvnni.cpp": "-mavx2 -mfma -mf16c -mavxvnni",
    "_avx512.cpp": AVX512,
    "_avx512vnni.cpp": f"{AVX512} -mavx512vnni",
    "_avx512bf16.cpp": f"{AVX512} -mavx512vnni -mavx512bf16",
    "_amx.cpp": f"{AVX512} -mavx512vnni -mavx512bf16 -mamx-tile -mamx-int8",
}
# PTX for 80 too, so that GPUs newer than the list still run.
GENCODE = (
    "-gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_80,code=compute_80 "
    "-gencode=arch=compute_90a,code=sm_90a"
)

# In README.md: code, which stays as it is, or a link or picture whose target is no address.
RELATIVE = re.compile(
    r"^```.*?^```|`[^`\n]+`|(!?)\[((?:[^][]|\[[^][]*])*)]\((?![a-z]+:)([^)\s#]*)[^)]*\)",
    re.M | re.S,
)


def readme() -> str:
    """README.md where it stands alone: no relative pictures, and a file's name for its link."""

    def plain(found: re.Match[str]) -> str:
        picture, text, file = found.groups()
        if text is None:
            return found[0]
        if picture or not file:
            return "" if picture else text
        return f"`{file}`" if file in text else f"{text} (`{file}`)"

    return RELATIVE.sub(plain, Path("README.md").read_text(encoding="utf-8"))


def find_cxx() -> str:
    """$CXX, or the first of the usual compilers."""
    for name in filter(None, (os.environ.get("CXX"), "g++", "c++", "clang++")):
        if shutil.which(shlex.split(name)[0]):
            return name
    raise PlatformError("m3fast needs a C++17 compiler and found none: install g++ or set CXX")


def find_headers() -> str:
    """Where Python.h lies."""
    folder = sysconfig.get_path("include")
    if not Path(folder, "Python.h").exists():
        raise PlatformError(f"m3fast needs {folder}/Python.h, absent here: install python3-dev")
    return folder


def find_nvcc() -> str | None:
    """nvcc if the CUDA half is to be built, else None, as M3FAST_CUDA=auto|0|1 says."""
    switch = os.environ.get("M3FAST_CUDA", "auto")
    if switch not in ("auto", "0", "1"):
        raise PlatformError(f"M3FAST_CUDA must be auto, 0 or 1, got {switch!r}")
    roots = [os.environ[k] for k in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(k)]
    path = os.pathsep.join([*(f"{root}/bin" for root in roots), os.environ.get("PATH", "")])
    nvcc = shutil.which("nvcc", path=path)
    if switch == "1" and not nvcc:
        raise PlatformError("M3FAST_CUDA=1, but no nvcc in CUDA_HOME/bin or PATH: install CUDA")
    if switch == "1" and not CU:
        raise PlatformError("M3FAST_CUDA=1, but csrc/cuda/ holds no kernels to build")
    return nvcc if switch != "0" and CU else None


class NinjaBuildExt(build_ext):
    """Compiles in parallel, and again only what changed (headers included)."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        nvcc, cxx = find_nvcc(), find_cxx()
        root, temp = Path.cwd(), Path(self.build_temp).absolute()
        target = Path(self.get_ext_fullpath(ext.name)).absolute()
        includes = [find_headers(), pybind11.get_include()]
        flags = [*FLAGS.split(), *(f"-isystem{p}" for p in includes)]
        flags += ["-DM3FAST_CUDA"] * bool(nvcc) + shlex.split(os.environ.get("CXXFLAGS", ""))
        if nvcc:  # it knows where its own libcudart_static.a lies
            link = f"{nvcc} -shared -cudart static -Xcompiler=-pthread $in -ldl -o $out"
        elif sys.platform == "darwin":
            link = f"{cxx} -bundle -undefined dynamic_lookup $in -o $out"
        else:
            link = f"{cxx} -shared -pthread $in -ldl -o $out"
        lines = [
            f"rule cxx\n  command = {cxx} {shlex.join(flags).replace('$', '$$')} $isa"
            " -MMD -MF $out.d -c $in -o $out\n  depfile = $out.d\n  deps = gcc",
            f"rule nvcc\n  command = {nvcc} -O3 -std=c++17 -Xcompiler=-fPIC,-fvisibility=hidden"
            f" {GENCODE} -MMD -MF $out.d -c $in -o $out\n  depfile = $out.d\n  deps = gcc",
            f"rule link\n  command = {link}",
        ]
        x86 = platform.machine().lower() in ("x86_64", "amd64")
        objects = []
        # The linker keeps the first copy of an inline function: plain files first, AMX last.
        suffixes = {
            s: next((k for k in ISA if s.endswith(k)), "") for s in ext.sources + CU * bool(nvcc)
        }
        for source in sorted(suffixes, key=lambda s: (["", *ISA].index(suffixes[s]), s)):
            isa = ISA.get(suffixes[source], "") if x86 else ""
            rule = "nvcc" if source.endswith(".cu") else "cxx"
            objects.append(quote(temp / f"{source}.o"))
            lines.append(f"build {objects[-1]}: {rule} {quote(root / source)}\n  isa = {isa}")
        lines.append(f"build {quote(target)}: link {' '.join(objects)}\n")
        target.parent.mkdir(parents=True, exist_ok=True)
        temp.mkdir(parents=True, exist_ok=True)
        (temp / "build.ninja").write_text("\n".join(lines))
        ninja = [sys.executable, "-m", "ninja", "-C", str(temp)]
        if self.parallel:
            ninja += ["-j", str(self.parallel)]
        if subprocess.run(ninja, check=False).returncode:
            raise PlatformError("m3fast._C did not compile: the compiler's message is above")


def quote(path: Path) -> str:
    """A path as ninja's build lines want it."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


kernels = ["m3fast.kernels", *(f"m3fast.kernels.{p}" for p in find_packages("kernels"))]
packages = find_packages("src", exclude=["m3fast.kernels", "m3fast.kernels.*"])
setup(
    long_description=readme(),
    long_description_content_type="text/markdown",
    packages=[*packages, *kernels],
    package_dir={"": "src", "m3fast.kernels": "kernels"},
    ext_modules=[Extension("m3fast._C", CPP, depends=HEADERS + CU)],
    cmdclass={"build_ext": NinjaBuildExt},
)
