"""The machine's limits: its fastest matrix product and its fastest pass over memory.

    limit = max(floating-point operations / flops(dtype), bytes / bandwidth)

Measured once per session and dtype, warm, the best of repeated rounds: a limit is what was reached
once, not what is usual. A look at each further use raises it if the machine has become faster.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from bench.core import eight

Product = Callable[[torch.Tensor], torch.Tensor]

HIDDEN = 1024
ROWS = {"cpu": 2048, "cuda": 32768}
BYTES = {"cpu": 256 << 20, "cuda": 2 << 30}  # of one buffer, far beyond any cache
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16,
          "int8": torch.int8}  # fmt: skip
SECONDS, LOOKS = 2.0, 20  # of a measurement unless told; a later look is so much shorter

Run = Callable[[], Any]


def shapes(hidden: int = HIDDEN) -> dict[str, tuple[int, int]]:
    """(columns N, depth K) of an encoder layer's four products."""
    return {
        "qkv": (3 * hidden, hidden),
        "out": (hidden, hidden),
        "up": (4 * hidden, hidden),
        "down": (hidden, 4 * hidden),
    }


def products(x: torch.Tensor, weight: torch.Tensor) -> dict[str, Product]:
    """x -> x W^T by each way of torch, by name; W [N, K] is as the checkpoint has it.

    Of int8, on a CPU, by ONNX Runtime too where it is installed.
    """
    if x.dtype == torch.int8:
        return eight.products(x, weight)
    out = x.new_empty(len(x), len(weight))
    ways: dict[str, Product] = {
        "torch.mm": lambda x: torch.mm(x, weight.t(), out=out)
    }
    if x.is_cpu and torch.backends.mkldnn.is_available() and x.dtype != torch.float16:
        ops = torch.ops.mkldnn
        packed = ops._reorder_linear_weight(weight, len(x))
        ways["oneDNN, packed"] = lambda x: ops._linear_pointwise(x, packed, None, "none", [], "")
    return ways


def normal(
    *size: int, dtype: torch.dtype, device: Any = None, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Normal values; of int8 with a deviation of 32, so that as many bits change."""
    x = torch.randn(*size, device=device, generator=generator)
    if dtype == torch.int8:
        x = (32 * x).round_().clamp_(-127, 127)
    return x.to(dtype)


class Roof:
    """Ceilings of one device.

    Args:
        toy: sizes and rounds that run in a blink, for smoke tests; the figures mean nothing.
        seconds: for each limit's first measurement.
    """

    def __init__(
        self, device: torch.device, toy: bool = False, seconds: float = SECONDS
    ) -> None:
        self._device, self._toy, self._for = device, toy, seconds
        self._best: dict[str, tuple[float, float, Run]] = {}

    def flops(self, dtype: str) -> float | None:
        """Operations per second of the fastest product of the encoder's; None for odd dtypes."""
        if dtype not in DTYPES or (dtype == "int8" and self._device.type != "cpu"):
            return None
        return self._rate(dtype, lambda: self._products(DTYPES[dtype]))

    @property
    def bandwidth(self) -> float:
        """Bytes read and written per second: of a copy, or of a pass that only reads."""
        return self._rate("bandwidth", self._passes)

    def _rate(self, name: str, make: Callable[[], list[tuple[float, Run]]]) -> float:
        with torch.inference_mode():
            if name in self._best:
                rate, work, run = self._best[name]
                rate = max(rate, work / self._seconds(run, self._for / LOOKS))
            else:
                made = make()
                each = self._for / len(made)
                rates = [(work / self._seconds(run, each), work, run) for work, run in made]
                rate, work, run = max(rates, key=lambda r: r[0])
            self._best[name] = rate, work, run
        return rate

    def _products(self, dtype: torch.dtype) -> list[tuple[float, Run]]:
        rows = 8 if self._toy else ROWS[self._device.type]
        made: list[tuple[float, Run]] = []
        for n, k in shapes(64 if self._toy else HIDDEN).values():
            x = normal(rows, k, dtype=dtype, device=self._device)
            weight = normal(n, k, dtype=dtype, device=self._device)
            for run in products(x, weight).values():
                made.append((2.0 * rows * n * k, lambda run=run, x=x: run(x)))
        return made

    def _passes(self) -> list[tuple[float, Run]]:
        size = (1 << 10) if self._toy else BYTES[self._device.type]
        source = torch.randn(size // 4, device=self._device)
        target = torch.empty_like(source)
        return [
            (2.0 * source.nbytes, lambda: target.copy_(source)),
            (1.0 * source.nbytes, lambda: source.sum()),
            (1.0 * source.nbytes, lambda: source.amax()),
        ]

    def _seconds(self, run: Run, limit: float) -> float:
        """The shortest of the runs that fit into `limit` seconds, after an untimed one."""
        run()
        best, end = float("inf"), time.perf_counter() + (0 if self._toy else limit)
        while True:
            best = min(best, self._once(run))
            if time.perf_counter() >= end:
                return best

    def _once(self, run: Run) -> float:
        if self._device.type == "cpu":
            start = time.perf_counter()
            run()
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        run()  # the host is ahead by this one when the clock starts
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3
