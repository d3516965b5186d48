"""One model on one device: a packed batch goes in, the outputs asked for come out."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from m3fast.encoder import Workspace, encode
from m3fast.errors import InputError
from m3fast.heads import colbert_head, dense_head, pool, pooled_rows, sparse_head

if TYPE_CHECKING:
    from collections.abc import Sequence

    from m3fast.checkpoint import Weights
    from m3fast.config import ModelConfig, Pooling
    from m3fast.types import PackedBatch, SparseRows

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SHORT = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class Outputs:
    """Which of the three outputs to compute."""

    dense: bool
    sparse: bool
    colbert: bool


@dataclass(frozen=True, slots=True)
class HeadOptions:
    """How hidden states become vectors.

    Attributes:
        normalize: L2-normalise dense and colbert vectors.
        truncate_dim: keep this many leading dimensions of them, before normalising.
        dropped: token ids that carry no lexical weight.
    """

    pooling: Pooling
    normalize: bool
    truncate_dim: int | None
    dropped: Sequence[int]


@dataclass(frozen=True, slots=True)
class BatchResult:
    """Outputs of one batch in batch order, on the CPU; what was not asked for is None.

    Attributes:
        dense: float32 [N, H].
        sparse: N rows.
        colbert: float32 [T - N, D], every token but each text's first.
    """

    dense: torch.Tensor | None
    sparse: SparseRows | None
    colbert: torch.Tensor | None


def pick_device(device: str) -> torch.device:
    """`auto` is the first CUDA device where there is one, else the CPU.

    Raises:
        InputError: a device torch does not know or this machine does not have.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
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
    return chosen


def pick_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the hardware multiplies it, else float32.

    Raises:
        InputError: a dtype other than float32, float16, bfloat16 and their short names.
    """
    if isinstance(dtype, torch.dtype) and dtype in DTYPES.values():
        return dtype
    if dtype == "auto":
        return torch.bfloat16 if _has_bf16(device) else torch.float32
    chosen = DTYPES.get(SHORT.get(str(dtype), str(dtype)))
    if chosen is None:
        raise InputError(f"dtype: expected 'auto' or one of {list(DTYPES)}, found {dtype!r}")
    return chosen


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # Without such instructions oneDNN emulates bf16, slower than fp32. torch has no public name
    # for these two in every version we support.
    known = torch.cpu
    return known._is_avx512_bf16_supported() or known._is_amx_tile_supported()  # pyright: ignore[reportPrivateUsage]


class Runner:
    """The encoder and heads of one checkpoint on one device. One batch at a time, any thread."""

    def __init__(self, config: ModelConfig, weights: Weights, device: torch.device) -> None:
        self.config, self.weights, self.device = config, weights, device
        self._space = Workspace()
        self._lock = threading.Lock()

    def run(self, batch: PackedBatch, outputs: Outputs, options: HeadOptions) -> BatchResult:
        """Encode one batch; heads that are not in `outputs` are not computed."""
        with self._lock, torch.inference_mode():
            cu_seqlens = torch.from_numpy(batch.cu_seqlens)
            rows = pooled_rows(cu_seqlens.to(self.device), options.pooling)
            only = None if outputs.sparse or outputs.colbert else rows
            hidden = encode(
                self.config,
                self.weights,
                torch.from_numpy(batch.ids).to(self.device),
                torch.from_numpy(batch.positions).to(self.device),
                cu_seqlens,
                batch.max_seqlen,
                self._space,
                only,
            )
            cu_seqlens = cu_seqlens.to(self.device)
            vectors = (options.normalize, options.truncate_dim)
            dense, sparse, colbert = None, None, None
            if outputs.dense:
                pooled = pool(hidden, rows, cu_seqlens) if only is None else hidden
                dense = dense_head(pooled, *vectors).cpu()
            if outputs.sparse and self.weights.sparse is not None:
                linear, vocab_size = self.weights.sparse, self.config.vocab_size
                sparse = sparse_head(hidden, batch, linear, options.dropped, vocab_size)
            if outputs.colbert and self.weights.colbert is not None:
                colbert = colbert_head(hidden, cu_seqlens, self.weights.colbert, *vectors).cpu()
            return BatchResult(dense, sparse, colbert)
