"""`m3fast env`: versions and devices of this machine, and the path that each operation takes."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import torch

import m3fast
from m3fast.cli.table import table
from m3fast.kernels import dispatch, native, tuning
from m3fast.kernels.linear import has_kernel
from m3fast.runner.device import pick_device, pick_dtype

if TYPE_CHECKING:
    import argparse

PACKAGES = ("torch", "numpy", "tokenizers", "safetensors", "transformers", "triton", "pyarrow")


def run(args: argparse.Namespace) -> int:
    """Print the report."""
    report = environment()
    if args.json:
        print(json.dumps(report, indent=1))
        return 0
    for title, values in report.items():
        print(title)
        rows = [[f"  {name}", _shown(value)] for name, value in values.items()]
        print("\n".join(table(["", ""], rows, left=2).split("\n")[1:]), end="\n\n")
    return 0


def environment() -> dict[str, dict[str, Any]]:
    """The report, as JSON values, by section."""
    device = pick_device("auto")
    return {
        "versions": _versions(),
        "machine": _machine(),
        "default": _default(device),
        "native extension": _native(),
        "operations": _operations(device, pick_dtype("auto", device)),
    }


def _versions() -> dict[str, Any]:
    found: dict[str, Any] = {"m3fast": m3fast.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _machine() -> dict[str, Any]:
    return {
        "platform": platform.platform(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "cpu bf16": native.bf16_instructions() or "no instructions for it",
        "cores": os.cpu_count(),
        "torch threads": torch.get_num_threads(),
        "cuda": [_cuda(i) for i in range(torch.cuda.device_count())]
        or ("no device" if torch.version.cuda else "this build of torch has none"),
    }


def _cuda(i: int) -> str:
    found = torch.cuda.get_device_properties(i)
    return f"{found.name}, {found.total_memory >> 20:,} MiB, sm_{found.major}{found.minor}"


def _default(device: torch.device) -> dict[str, Any]:
    dtype = pick_dtype("auto", device)
    multiplies = "multiplies" if dtype == torch.bfloat16 else "does not multiply"
    there = "a CUDA device is there" if device.type == "cuda" else "no CUDA device"
    return {
        "device": f"{device} ({there})",
        "dtype": f"{str(dtype).removeprefix('torch.')} (the path in use {multiplies} bfloat16)",
    }


def _native() -> dict[str, Any]:
    if not native.available:
        return {"available": False, "why": native.why}
    library = native.library()
    forced = f" ({native.VARIABLE})" if native.forced else ""
    return {
        "available": True,
        "cpu instructions": library.cpu_path() + forced,
        "cuda kernels": bool(library.has_cuda),
        "openmp team": "torch's own" if library.has_team() else "not found: one thread",
    }


def _operations(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """Asked of the dispatch itself, for the default device and dtype."""
    library = native.library() if native.available else None
    name = f"native {library.cpu_path()}" if library else ""
    gpu = device.type == "cuda"
    on_cpu = not gpu and native.library_for(torch.empty(1, dtype=dtype)) if library else None
    encoder = name if on_cpu else f"torch on {device.type}"
    packed = not gpu and has_kernel(torch.empty(2, 2, dtype=dtype))
    host = name or "numpy"
    padding = "torch on cpu"
    if gpu:
        reason = native.why_no_cuda(device)
        padding = f"torch on cuda: {reason}" if reason else "CUDA C++"
    return {
        "attention": _triton("attention", device) if gpu else encoder,
        "layernorm": _triton("layernorm", device) if gpu else encoder,
        "gelu": _triton("gelu", device) if gpu else encoder,
        "linear layers": name if packed else f"torch on {device.type}",
        "linear layers in int8": _int8(library, device),
        "vectors": _triton("", device) if gpu else "torch on cpu",
        "packing": host,
        "padded to packed": padding,
        "sparse rows": _triton("sparse_csr", device) if gpu else host,
        "lexical scores": host,
        "maxsim": _triton("maxsim", device) if gpu else name or "torch on cpu",
    }


def _int8(library: Any, device: torch.device) -> str:
    """Bytes are multiplied with bytes, for any number of rows."""
    if device.type != "cpu":
        return "on a CPU only"
    if library is None:
        return "torch on cpu, 8 bits"
    return f"native {library.cpu_path()}, {library.int8_bits()} bits"


def _triton(op: str, device: torch.device) -> str:
    """Path of an op that has a Triton kernel, on a CUDA device; "" where nothing is to be tuned."""
    if reason := dispatch.why_not(device):
        return f"torch on cuda: {reason}"
    if not op:
        return f"Triton, sm_{dispatch.arch(device)}"
    file = tuning.file_for(device)
    measured = any(row["op"] == op for row in tuning.read(file))
    configs = f"tuned {file.name}" if measured else "default configs"
    return f"Triton, sm_{dispatch.arch(device)}, {configs}"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "not installed" if value is None else str(value)
