"""One record per row and candidate: what was timed, on what, at which commit. Append-only."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

from bench.core.dtypes import NO_BF16, no_int8
from bench.core.paths import RESULTS, ROOT
from m3fast.kernels import native

PACKAGES = (
    "torch", "numpy", "tokenizers", "transformers", "FlagEmbedding", "onnxruntime", "openvino",
    "nncf", "maxsim-cpu", "sentence-transformers", "triton", "late-interaction-kernels",
    "flash-maxsim", "fastapi", "uvicorn", "uvloop", "httptools", "orjson",
)  # fmt: skip

# What decides what runs; src/m3fast/kernels is a link to kernels/.
SOURCES = ("src/m3fast/**/*.py", "kernels/**/*.py", "kernels/tuned/*.json",
           *(f"csrc/**/*.{end}" for end in ("h", "cuh", "cpp", "cu")))  # fmt: skip


def has_bf16() -> bool:
    """Whether this CPU multiplies bf16 itself (AVX512_BF16 or AMX)."""
    return bool(native.bf16_instructions())


def lacks(dtype: str) -> str:
    """What a row of this dtype waits for on this CPU, or ""."""
    if dtype == "bf16":
        return "" if has_bf16() else NO_BF16
    return no_int8() if dtype == "int8" else ""


def device() -> str:
    """The machine in words: processor, cores this process may use, instruction set."""
    model = "CPU"
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"model name\s*: (.+)", info.read_text())
        model = found[1] if found else model
    model = re.sub(r"\((R|TM)\)|\bCPU\b|@.*|\S*-Core|Processor", " ", model) or "CPU"
    isa = torch.backends.cpu.get_cpu_capability()
    found = native.bf16_instructions()
    if found:
        isa += " AMX" if "amx" in found else " BF16"
    if native.forced:
        isa += f", {native.forced} forced"
    return f"{' '.join(model.split())}, {len(os.sched_getaffinity(0))} cores, {isa}"


def slug(words: str) -> str:
    """`AMD EPYC, 2 cores, AVX2` -> `cpu-amd-epyc-2c-avx2`; `NVIDIA H200, 132 SMs, sm_90` ->
    `nvidia-h200`."""
    if re.search(r", sm_\d+$", words):
        return re.sub(r"[^a-z0-9]+", "-", words.lower().split(",")[0])
    short = re.sub(r"(\d+) cores", r"\1c", words.lower())
    return "cpu-" + re.sub(r"[^a-z0-9]+", "-", short).strip("-")


def versions() -> dict[str, str]:
    """Versions of what the figures depend on, of those that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def tree(root: Path = ROOT) -> str:
    """16 hex digits that tell two states of the sources apart, with or without git."""
    found = {
        file.relative_to(root).as_posix(): file
        for pattern in SOURCES
        for file in root.glob(pattern)
    }
    digest = hashlib.sha256()
    for name in sorted(found):
        if not name.startswith("src/m3fast/kernels/"):
            content = hashlib.sha256(found[name].read_bytes()).hexdigest()
            digest.update(f"{name} {content}\n".encode())
    return digest.hexdigest()[:16]


def commit() -> tuple[str, bool]:
    """Commit of the working tree, and whether it has changes outside bench/results.

    M3FAST_COMMIT says it where it is set, as `git describe --always --dirty --abbrev=40
    --match=NONE` prints it: a tree that travelled may have no git, or that of another commit.
    "unknown" without either.
    """
    if given := os.environ.get("M3FAST_COMMIT"):
        return given.removesuffix("-dirty"), given.endswith("-dirty")
    try:
        head = _git("rev-parse", "HEAD")
        changes = _git("status", "--porcelain", "--", ".", ":!bench/results", ":!README.md")
    except (OSError, subprocess.CalledProcessError):
        return "unknown", True
    return head, bool(changes)


def file_of(words: str) -> Path:
    """The results of a device."""
    return RESULTS / f"{slug(words)}.jsonl"


def append(records: list[dict[str, Any]], words: str, file: Path | None = None) -> Path:
    """Add records to `file`, or to the device's."""
    if file is None:
        RESULTS.mkdir(exist_ok=True)
        file = file_of(words)
    with file.open("a", encoding="utf-8") as out:
        out.writelines(json.dumps(r, ensure_ascii=False) + "\n" for r in records)
    return file


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True, timeout=60
    )
    return done.stdout.strip()
