"""One model on one GPU: one upload, kernels without a host sync, one download, all asynchronous.

    host             pack the next batch       put the last one's rows in place
    compute stream   upload | encoder | heads
    copy stream                                download

A large batch takes exactly the memory it needs. A small one is padded to a bucket of tokens, texts
and attention tiles, which nobody reads, so that few shapes occur and a CUDA graph can replay each:
at that size launching kernels one by one takes longer than running them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from m3fast.kernels import dispatch
from m3fast.kernels.attention import (
    HEAD_SIZES,
    AttentionPlan,
    attention_config,
    attention_plan,
    attention_tiles,
    most_tiles,
)
from m3fast.kernels.packing import packed_size
from m3fast.kernels.sparse import sparse_csr
from m3fast.model.inference import inference
from m3fast.model.mcls import CLS_EVERY, colbert_counts
from m3fast.model.packing import as_arrays, pack_texts
from m3fast.model.workspace import Tokens, Workspace
from m3fast.runner import buckets
from m3fast.runner.base import Outputs, dummy_texts
from m3fast.runner.cpu import Runner
from m3fast.runner.forward import forward
from m3fast.runner.graphs import Graphs
from m3fast.runner.staging import Inputs, Results
from m3fast.runner.transfer import Transfer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from m3fast.checkpoint.config import ModelConfig
    from m3fast.checkpoint.weights import Weights
    from m3fast.kernels.gpu.attention import AttentionConfig
    from m3fast.kernels.packing import Size
    from m3fast.runner.base import BatchResult, HeadOptions
    from m3fast.types import Selection

# A padded batch's results of more words are copied aside, so that nothing waits while they go down.
INLINE_WORDS = 1 << 17


class GpuRunner(Runner):
    """A runner whose batches overlap: while one is computed, its neighbours are moved.

    Attributes:
        stream: what kernels run on; None where they are interpreted.
        graphs: those of small batches.
    """

    in_flight = 2

    def __init__(
        self, config: ModelConfig, weights: Weights, device: torch.device, *, graphs: bool = True
    ) -> None:
        """Take over weights that lie on `device`; without `graphs` all kernels run eagerly."""
        super().__init__(config, weights, device)
        self._on_gpu = device.type == "cuda"  # else the kernels are interpreted, in a test
        self.stream = torch.cuda.Stream(device) if self._on_gpu else None
        self._transfer = Transfer(self.stream, config.vocab_size)
        self.graphs = Graphs(self.stream if graphs else None)
        # What graphs read and write stays where it is, once it is there.
        self._bucket_space = Workspace()
        self._words: torch.Tensor | None = None  # the inputs of any bucket
        self._out: torch.Tensor | None = None  # its results
        if self._on_gpu:  # the weights were written on another stream
            torch.cuda.synchronize(device)

    def submit(
        self, parts: Sequence[Selection], outputs: Outputs, options: HeadOptions
    ) -> Callable[[], BatchResult]:
        """As `Runner.submit`, without waiting for the GPU."""
        size = packed_size(as_arrays(parts))
        bucket = buckets.bucket_of(size)
        space = self._space()
        with space.lock, inference(), torch.cuda.stream(self.stream):
            if bucket is None:
                return self._run_exact(parts, size, outputs, options, space)
            return self._run_bucket(bucket, parts, outputs, options)

    def hidden_states(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """As `Runner.hidden_states`, ordered after the caller's stream and before its next work."""
        if self.stream is None:
            return super().hidden_states(ids, mask)
        callers = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(callers)
        with torch.cuda.stream(self.stream):
            hidden = super().hidden_states(ids, mask)
        callers.wait_stream(self.stream)
        hidden.record_stream(callers)
        return hidden

    def _plan(self, cu_seqlens: torch.Tensor, longest: int) -> AttentionPlan:
        dim, dtype = self.config.head_dim, self.weights.dtype
        return attention_plan(cu_seqlens.numpy(), longest, dim, dtype, self.device)

    def free(self) -> None:
        """As `Runner.free`; memory that graphs use stays."""
        super().free()
        if self._on_gpu:
            torch.cuda.empty_cache()

    def warmup(self, outputs: Outputs, options: HeadOptions) -> None:
        """Compile the kernels of every length class and capture the graphs of every bucket.

        Of its tile classes those of long texts, of short ones and of texts that just share no tile:
        few texts give another. That one is captured when it has come twice, and compiles nothing.
        """
        longest = self.config.max_length
        for bucket in reversed(buckets.BUCKETS):
            config, shortest = self._attention(bucket), buckets.shortest_texts(bucket)
            batches: dict[int, list[Selection]] = {}
            for length in (bucket, config.short // 2 + 1, shortest):
                batch = dummy_texts(bucket, max(shortest, min(length, longest)))
                ends = batch[0].tokens.offsets.astype(np.int32)
                tiles = len(attention_tiles(ends, config.short, config.rows))
                batches[buckets.bucket_inputs(bucket, config, tiles).tiles] = batch
            for batch in batches.values():
                for _ in range(3):  # eagerly, captured, replayed
                    self.submit(batch, outputs, options)()
        for length in (32, 64, 128, 256):
            batch = dummy_texts(2 * buckets.BUCKETS[-1], min(length, longest))
            self.submit(batch, outputs, options)()
        if outputs.dense:  # alone it takes a kernel of its own, and a server may be asked for it
            batch = dummy_texts(buckets.BUCKETS[0], 2)
            self.submit(batch, Outputs(True, False, False), options)()

    def _run_exact(
        self,
        parts: Sequence[Selection],
        size: Size,
        outputs: Outputs,
        options: HeadOptions,
        space: Workspace,
    ) -> Callable[[], BatchResult]:
        total, texts, longest = size
        config = self._attention(longest)
        inputs = Inputs(total, texts, most_tiles(total, texts, config.short, config.rows))
        host = self._transfer.pinned(inputs.words)
        batch = pack_texts(parts, self.config, host.numpy(), inputs.packed)
        tiles = attention_tiles(batch.cu_seqlens, config.short, config.rows)
        inputs.split(host)[-1][: len(tiles)] = torch.from_numpy(tiles)
        words = host.to(self.device, non_blocking=True)
        *packed, device_tiles = inputs.split(words)

        rows = int(colbert_counts(batch.lengths, options.pooling).sum())
        results = self._results(texts, total, rows, outputs, options)
        out = torch.empty(results.words, device=self.device)
        given = (*packed, device_tiles[: len(tiles)])
        self._compute(given, longest, outputs, options, results.split(out), space)
        return self._transfer.fetch_aside(out, results, texts)

    def _run_bucket(
        self, bucket: int, parts: Sequence[Selection], outputs: Outputs, options: HeadOptions
    ) -> Callable[[], BatchResult]:
        if self._words is None or self._out is None:
            self._words, self._out = self._prepare(options)
        config = self._attention(bucket)
        room = buckets.bucket_inputs(bucket, config)
        host = self._transfer.pinned(room.words)
        batch = pack_texts(parts, self.config, host.numpy(), room.packed)
        found = attention_tiles(batch.cu_seqlens, config.short, config.rows)
        inputs = buckets.bucket_inputs(bucket, config, len(found))
        tiles = inputs.split(host)[-1]
        tiles[: len(found)] = torch.from_numpy(found)
        tiles[len(found) :] = 0

        words = self._words[: inputs.words]
        words.copy_(host[: inputs.words], non_blocking=True)
        results = self._results(inputs.texts, bucket, bucket, outputs, options)
        out = self._out[: results.words]
        self.graphs.run(
            (bucket, inputs.tiles, outputs, options),
            lambda: self._compute(
                inputs.split(words), bucket, outputs, options, results.split(out),
                self._bucket_space,
            ),
        )  # fmt: skip
        rows = int(colbert_counts(batch.lengths, options.pooling).sum())
        used = replace(results, rows=rows)  # they come last
        if used.words <= INLINE_WORDS:
            return self._transfer.fetch(out[: used.words], used, batch.n_texts)
        return self._transfer.fetch_aside(out[: used.words].clone(), used, batch.n_texts)

    def _compute(
        self,
        inputs: list[torch.Tensor] | tuple[torch.Tensor, ...],
        longest: int,
        outputs: Outputs,
        options: HeadOptions,
        results: list[torch.Tensor],
        space: Workspace,
    ) -> None:
        """All kernels of one batch, on the current stream; nothing here waits for the GPU."""
        ids, positions, owners, cu_seqlens, tiles = inputs
        dense, csr, check, colbert = results
        plan = AttentionPlan(tiles, owners, longest)
        tokens = Tokens(ids, positions, cu_seqlens, longest, plan)
        most = len(cu_seqlens) - 1 + len(ids) // CLS_EVERY  # of CLS tokens, whatever the lengths
        given = (self.config, self.weights, tokens, owners, cu_seqlens, outputs, options, space)
        made = forward(*given, n_cls=most, dense=dense, colbert=colbert)
        if made.token_weights is not None:
            sparse_csr(ids, made.token_weights, cu_seqlens, owners, options.dropped, out=csr)
        if made.colbert is not None:
            torch.sum(colbert.view(-1), 0, keepdim=True, out=check)

    def _results(
        self, texts: int, tokens: int, rows: int, outputs: Outputs, options: HeadOptions
    ) -> Results:
        dense = options.width(self.weights.dense_size) if outputs.dense else 0
        colbert = options.width(self.weights.colbert_size) if outputs.colbert else 0
        return Results(texts, tokens, rows, dense, outputs.sparse, colbert)

    def _attention(self, longest: int) -> AttentionConfig:
        dtype = self.weights.dtype
        return attention_config(self.config.head_dim, dtype, longest, self.device)

    def _prepare(self, options: HeadOptions) -> tuple[torch.Tensor, torch.Tensor]:
        """Room for the inputs and for the results of every bucket, and the largest run once.

        That gives the workspace its size before any graph knows its addresses.
        """
        rooms = [buckets.bucket_inputs(b, self._attention(b)) for b in buckets.BUCKETS]
        dense, colbert = self.weights.dense_size, self.weights.colbert_size
        largest = rooms[-1]
        tokens = largest.tokens
        results = Results(largest.texts, tokens, tokens, dense, True, colbert)
        words = max(room.words for room in rooms)
        self._words = torch.zeros(words, dtype=torch.int32, device=self.device)
        self._out = torch.zeros(results.words, device=self.device)
        outputs = Outputs(dense=True, sparse=bool(colbert), colbert=bool(colbert))
        try:
            batch = dummy_texts(tokens, buckets.shortest_texts(tokens))
            self._run_bucket(tokens, batch, outputs, options)
        except BaseException:  # the next batch starts over
            self._words = self._out = None
            raise
        return self._words, self._out


def make_runner(config: ModelConfig, weights: Weights, device: torch.device) -> Runner:
    """The runner made for this device: the GPU's where its kernels take this model."""
    if not dispatch.why_not(device) and config.head_dim in HEAD_SIZES:
        return GpuRunner(config, weights, device)
    return Runner(config, weights, device)
