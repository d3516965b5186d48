"""The runner of a CPU, and what a GPU's shares with it: a batch is packed, computed, returned."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from m3fast.kernels.padding import pad_rows, unpad
from m3fast.model.encoder import encode
from m3fast.model.heads import sparse_head
from m3fast.model.inference import inference
from m3fast.model.mcls import cls_counts
from m3fast.model.packing import pack_texts
from m3fast.model.workspace import Tokens, Workspace
from m3fast.runner.base import BatchResult, HeadOptions, Outputs, dummy_texts
from m3fast.runner.forward import forward

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from m3fast.checkpoint.config import ModelConfig
    from m3fast.checkpoint.weights import Weights
    from m3fast.kernels.attention import AttentionPlan
    from m3fast.types import PackedBatch, Selection


class Runner:
    """The encoder and heads of one checkpoint on one device, for any thread.

    One batch at a time, unless `share` says otherwise.

    Attributes:
        in_flight: batches worth starting before the first is waited for.
    """

    in_flight = 0

    def __init__(self, config: ModelConfig, weights: Weights, device: torch.device) -> None:
        self.config, self.weights, self.device = config, weights, device
        self._spaces: list[Workspace] = []  # one per batch at a time
        self._own, self._turns = threading.local(), itertools.count()
        self.share(1)

    def share(self, batches: int) -> None:
        """Let so many batches be computed at a time, in as many threads."""
        self._spaces += [Workspace() for _ in range(len(self._spaces), batches)]

    def _space(self) -> Workspace:
        """This thread's, in turn; to be used as `with space.lock:`, which waits for others of it.

        A lock is released whatever exception strikes wherever, as one from a signal handler may; a
        space taken from a queue could be lost with it.
        """
        if not hasattr(self._own, "turn"):
            self._own.turn = next(self._turns)
        return self._spaces[self._own.turn % len(self._spaces)]

    def submit(
        self, parts: Sequence[Selection], outputs: Outputs, options: HeadOptions
    ) -> Callable[[], BatchResult]:
        """Start on one batch of the texts of all parts; what comes back waits for the result.

        Heads that are not in `outputs` are not computed.

        Raises:
            InputError: a token id that the model has no row for.
            torch.OutOfMemoryError: the device has no room for a batch of this size.
        """
        result = self._run(pack_texts(parts, self.config), outputs, options)
        return lambda: result

    def free(self) -> None:
        """Give back memory kept for later batches."""
        for space in self._spaces:
            if not space.lock.locked():
                with space.lock:
                    space.clear()

    def warmup(self, outputs: Outputs, options: HeadOptions) -> None:
        """Run once what a first call would otherwise wait for."""
        self.submit(dummy_texts(4, 4), outputs, options)()

    def hidden_states(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Last hidden states [B, L, H] of a padded batch, 0 where the mask is, on this device.

        Args:
            ids: int64 or int32 [B, L], on any device; the model must have a row for each.
            mask: bool or integers [B, L], not 0 for real tokens.
        """
        space = self._space()
        with space.lock, inference():
            lengths = mask.ne(0).sum(1, dtype=torch.int32).cpu()
            total, longest = int(lengths.sum()), int(lengths.max()) if len(lengths) else 0
            packed = unpad(
                ids.to(self.device), mask.to(self.device), self.config.position_pad_id, total=total
            )
            ends = F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
            plan = self._plan(ends, longest)
            given = packed.cu_seqlens if plan else ends
            tokens = Tokens(packed.ids, packed.positions, given, longest, plan)
            hidden, _ = encode(self.config, self.weights, tokens, space)
            return pad_rows(hidden, packed.slots)

    def _plan(self, cu_seqlens: torch.Tensor, longest: int) -> AttentionPlan | None:
        """How the GPU's kernel cuts a batch with these offsets, which are on the CPU."""
        return None

    def _run(self, batch: PackedBatch, outputs: Outputs, options: HeadOptions) -> BatchResult:
        space = self._space()
        with space.lock, inference():
            ends = torch.from_numpy(batch.cu_seqlens)
            ids, positions, texts, cu_seqlens = (
                t.to(self.device)
                for t in (*map(torch.from_numpy, (batch.ids, batch.positions, batch.texts)), ends)
            )
            tokens = Tokens(ids, positions, ends, batch.max_seqlen)
            n_cls = 0
            if options.pooling == "mcls":
                n_cls = int(cls_counts(batch.lengths).sum())
            dense, weights, colbert = forward(
                self.config, self.weights, tokens, texts, cu_seqlens, outputs, options, space,
                n_cls=n_cls,
            )  # fmt: skip
            sparse = None
            if weights is not None:
                sparse = sparse_head(weights, batch, options.dropped, self.config.vocab_size)
            return BatchResult(
                None if dense is None else dense.cpu(),
                sparse,
                None if colbert is None else colbert.cpu(),
            )
