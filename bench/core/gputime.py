"""GPU time: CUDA events around work that the host has enqueued before the GPU gets to it.

    flush L2 | sleep `ahead` s | event | the candidate's kernels | event

While the GPU sleeps the host enqueues, so that launches cost nothing that is not the GPU's. A
candidate that waits for the GPU in its middle pays for that wait, as its users do.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable
from typing import Any

import torch


class Events:
    """A `measure.Watch` of one device.

    Args:
        ahead: seconds that the host may need to enqueue the candidate.
        stream: where candidates run; the current one if None.
    """

    def __init__(
        self, device: torch.device, ahead: float, stream: torch.cuda.Stream | None = None
    ) -> None:
        found = torch.cuda.get_device_properties(device)
        # Twice the cache, so that nothing of the last sample is left in it.
        self._flush = torch.empty(2 * found.L2_cache_size, dtype=torch.uint8, device=device)
        self._cycles = int(ahead * 2e9)  # of at most 2 GHz: slower clocks sleep longer
        self._device, self._stream = device, stream

    def __call__(self) -> Callable[[], float]:
        # Left again in stop(): what runs in between is on this stream.
        inside = contextlib.ExitStack()
        inside.enter_context(torch.cuda.device(self._device))
        inside.enter_context(torch.cuda.stream(self._stream))
        torch.cuda.synchronize()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.random_(255)
        torch.cuda._sleep(self._cycles)
        begin.record()

        def stop() -> float:
            with inside:
                end.record()
                end.synchronize()
            return begin.elapsed_time(end) / 1e3

        return stop


def copy_of(moved: int, device: torch.device) -> Callable[[Any], None]:
    """A candidate that copies on the device until `moved` bytes were read or written.

    It answers None: there is nothing to judge.
    """
    source = torch.randn(max(moved // 8, 1), device=device)
    target = torch.empty_like(source)

    def run(_: Any) -> None:
        target.copy_(source)

    return run


def let_scalars_count_loops() -> None:
    """numpy 2.4 refuses int(array of one value), by which Triton 3.6's interpreter counts."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patched


def words(device: torch.device) -> str:
    """`NVIDIA H200, 132 SMs, sm_90`."""
    found = torch.cuda.get_device_properties(device)
    return f"{found.name}, {found.multi_processor_count} SMs, sm_{found.major}{found.minor}"


def clocks() -> dict[str, str]:
    """Driver, clocks and power limit as nvidia-smi tells them; empty where it does not."""
    fields = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit"
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"],
            check=True, capture_output=True, text=True, timeout=20,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(fields.split(","), done.stdout.splitlines()[0].split(", "), strict=False))
