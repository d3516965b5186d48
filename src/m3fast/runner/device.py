"""Which device and which dtype a name means on this machine."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from m3fast.errors import InputError
from m3fast.kernels import native

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
INT8 = "int8"
SHORT = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def pick_device(device: str) -> torch.device:
    """`auto` is the first CUDA device where there is one, else the CPU; `cuda` the current one.

    Raises:
        InputError: a device torch does not know or this machine does not have, or such a
            M3FAST_CPU_PATH.
    """
    if native.refused:
        raise InputError(native.refused)
    if device == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(
            f"device: expected 'auto', 'cpu' or 'cuda[:n]', found {device!r}"
        ) from error
    if chosen.type == "cpu":
        return torch.device("cpu")
    if chosen.type != "cuda":
        raise InputError(f"device: expected 'auto', 'cpu' or 'cuda[:n]', found {device!r}")
    count = torch.cuda.device_count()
    if (chosen.index or 0) >= count:
        raise InputError(f"device: expected one of {count} CUDA devices, found {device!r}")
    return torch.device("cuda", torch.cuda.current_device()) if str(chosen) == "cuda" else chosen


def pick_devices(device: str | Sequence[str]) -> list[torch.device]:
    """One device or several, each as `pick_device` takes it.

    Raises:
        InputError: none, or CPUs and GPUs together.
    """
    if isinstance(device, str) or not isinstance(device, Sequence):
        return [pick_device(device)]
    devices = [pick_device(each) for each in device]
    if len({each.type for each in devices}) != 1:
        raise InputError(f"device: expected one or more of one kind, found {list(device)}")
    return devices


def pick_dtype(
    dtype: str | torch.dtype, device: torch.device, *, int8: bool = False
) -> torch.dtype:
    """`auto` is bfloat16 where the hardware multiplies it, else float32.

    Args:
        int8: of a checkpoint in int8, for which `auto` is int8 on a CPU.

    Raises:
        InputError: a dtype other than float32, float16, bfloat16, their short names and int8, which
            a GPU has not.
    """
    if isinstance(dtype, torch.dtype) and dtype in DTYPES.values():
        return dtype
    if dtype in (INT8, torch.int8):
        if device.type != "cpu":
            raise InputError(f"dtype: expected a floating dtype on {device}, found 'int8'")
        return torch.int8
    if dtype == "auto":
        if int8 and device.type == "cpu":
            return torch.int8
        return torch.bfloat16 if _has_bf16(device) else torch.float32
    chosen = DTYPES.get(SHORT.get(str(dtype), str(dtype)))
    if chosen is None:
        raise InputError(f"dtype: expected 'auto' or one of {[*DTYPES, INT8]}, found {dtype!r}")
    return chosen


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return bool(native.bf16_instructions())
