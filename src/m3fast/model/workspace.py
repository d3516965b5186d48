"""What one pass through the encoder reads, and the buffers it computes in."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from m3fast.kernels.int8 import Int8Rows, row_sizes

if TYPE_CHECKING:
    from m3fast.kernels.attention import AttentionPlan


@dataclass(frozen=True, slots=True)
class Tokens:
    """A packed batch as tensors, on the device of the weights.

    Attributes:
        ids: int32 [T], token ids; checked already where there is a plan.
        positions: int32 [T], rows of the position table.
        cu_seqlens: int32 [N + 1]; on the CPU where there is no plan.
        max_seqlen: tokens of the longest text.
        plan: how the attention kernel cuts a GPU's batch; None without that kernel.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: int
    plan: AttentionPlan | None = None


class Workspace:
    """Buffers that every layer and every batch use again.

    Fresh 40 MB activations would be mapped and zeroed by the kernel anew in each layer.

    Attributes:
        lock: to be held by the batch that uses it.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._buffers: dict[str, torch.Tensor] = {}

    def clear(self) -> None:
        """Free the buffers."""
        self._buffers.clear()

    def take(self, name: str, rows: int, cols: int, like: torch.Tensor) -> torch.Tensor:
        """Uninitialised [rows, cols] in the dtype and on the device of `like`."""
        return self._take(name, (rows, cols), like.dtype, like.device)

    def take_rows(self, name: str, rows: int, cols: int) -> Int8Rows:
        """Uninitialised rows in eight bits."""
        data, scales = row_sizes(rows, cols)
        cpu = torch.device("cpu")
        return Int8Rows(
            self._take(name, data, torch.uint8, cpu),
            self._take(f"{name} scales", scales, torch.float32, cpu),
            cols,
        )

    def _take(
        self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        buffer, size = self._buffers.get(name), math.prod(shape)
        if buffer is None or buffer.numel() < size or buffer.dtype != dtype:
            buffer = torch.empty(size, dtype=dtype, device=device)
            self._buffers[name] = buffer
        return buffer[:size].view(shape)
