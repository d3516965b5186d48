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
from m3fast.kernels.sparse import csr_views, sparse_csr
from m3fast.model.encoder import Tokens, Workspace, encode
from m3fast.model.heads import colbert_head, dense_head, pooled_rows, word_rows
from m3fast.model.inference import inference
from m3fast.model.mcls import CLS_EVERY, colbert_counts
from m3fast.model.packing import as_arrays, pack_texts
from m3fast.runner.base import BatchResult, Outputs, dummy_texts
from m3fast.runner.cpu import Runner
from m3fast.runner.graphs import Graphs
from m3fast.runner.staging import Inputs, Results
from m3fast.types import SparseRows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from m3fast.checkpoint.config import ModelConfig
    from m3fast.checkpoint.weights import Weights
    from m3fast.kernels.gpu.attention import AttentionConfig
    from m3fast.kernels.packing import Size
    from m3fast.runner.base import HeadOptions
    from m3fast.types import Selection

# Tokens of padded batches; a batch of more is run as it is. An eager batch costs the host some ten
# launches a layer, about 5 ms at 24 layers: so long take the kernels of 4,000 to 6,000 tokens. From
# there on padding costs what launching does not, so steps are small.
BUCKETS = (32, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096,
           5120, 6144, 7168, 8192)  # fmt: skip
MOST_TEXTS = 1024  # of a bucket: each takes a row of results
FEWEST_TILES = 16  # with as many heads about one wave of programs, which need not be fewer
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
        self._download = torch.cuda.Stream(device) if self._on_gpu else None
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
        bucket = next((b for b in BUCKETS if b >= size.tokens and _texts(b) >= size.texts), None)
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
        dim, dtype = self.config.head_dim, self.weights.word.dtype
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
        for bucket in reversed(BUCKETS):
            config = self._attention(bucket)
            batches: dict[int, list[Selection]] = {}
            shortest = -(-bucket // _texts(bucket))
            for length in (bucket, config.short // 2 + 1, shortest):
                batch = dummy_texts(bucket, max(shortest, min(length, self.config.max_length)))
                ends = batch[0].tokens.offsets.astype(np.int32)
                tiles = attention_tiles(ends, config.short, config.rows)
                batches[self._inputs(bucket, len(tiles)).tiles] = batch
            for batch in batches.values():
                for _ in range(3):  # eagerly, captured, replayed
                    self.submit(batch, outputs, options)()
        for length in (32, 64, 128, 256):
            batch = dummy_texts(2 * BUCKETS[-1], min(length, self.config.max_length))
            self.submit(batch, outputs, options)()
        if outputs.dense:  # alone it takes a kernel of its own, and a server may be asked for it
            self.submit(dummy_texts(BUCKETS[0], 2), Outputs(True, False, False), options)()

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
        host = self._pinned(inputs.words)
        batch = pack_texts(parts, self.config, host.numpy(), inputs.packed)
        tiles = attention_tiles(batch.cu_seqlens, config.short, config.rows)
        inputs.split(host)[-1][: len(tiles)] = torch.from_numpy(tiles)
        words = host.to(self.device, non_blocking=True)
        *packed, device_tiles = inputs.split(words)

        rows = int(colbert_counts(np.diff(batch.cu_seqlens), options.pooling).sum())
        results = self._results(texts, total, rows, outputs, options)
        out = torch.empty(results.words, device=self.device)
        given = (*packed, device_tiles[: len(tiles)])
        self._compute(given, longest, outputs, options, results.split(out), space)
        return self._fetch_aside(out, results, texts)

    def _run_bucket(
        self,
        bucket: int,
        parts: Sequence[Selection],
        outputs: Outputs,
        options: HeadOptions,
    ) -> Callable[[], BatchResult]:
        if self._words is None or self._out is None:
            self._words, self._out = self._prepare(options)
        room, config = self._inputs(bucket), self._attention(bucket)
        host = self._pinned(room.words)
        batch = pack_texts(parts, self.config, host.numpy(), room.packed)
        found = attention_tiles(batch.cu_seqlens, config.short, config.rows)
        inputs = self._inputs(bucket, len(found))
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
        rows = int(colbert_counts(np.diff(batch.cu_seqlens), options.pooling).sum())
        used = replace(results, rows=rows)  # they come last
        if used.words <= INLINE_WORDS:
            return self._fetch(out[: used.words], used, batch.n_texts)
        return self._fetch_aside(out[: used.words].clone(), used, batch.n_texts)

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
        rows = pooled_rows(cu_seqlens, options.pooling, len(ids), most)
        only = None if outputs.sparse or outputs.colbert else rows
        head = self.weights.sparse if outputs.sparse else None
        hidden, weights = encode(self.config, self.weights, tokens, space, only, head)
        vectors = (options.normalize, options.truncate_dim)
        if outputs.dense:
            rows = rows if only is None else None
            given = (hidden, rows, cu_seqlens, options.pooling, *vectors, dense)
            dense_head(*given, self.weights.modules)
        if weights is not None:
            sparse_csr(ids, weights, cu_seqlens, owners, options.dropped, out=csr)
        if outputs.colbert and (head := self.weights.colbert) is not None:
            # The out projection's buffer is free again.
            product = space.take("hidden", len(hidden), head.weight.shape[0], hidden)
            words = word_rows(owners, cu_seqlens, options.pooling, len(colbert))
            colbert_head(hidden, head, owners, cu_seqlens, *vectors, product, colbert, words)
            torch.sum(colbert.view(-1), 0, keepdim=True, out=check)

    def _fetch_aside(
        self, out: torch.Tensor, results: Results, texts: int
    ) -> Callable[[], BatchResult]:
        """As `_fetch`, on the copy stream; `out` must not be written again."""
        if self._download is not None and self.stream is not None:
            self._download.wait_stream(self.stream)
            out.record_stream(self._download)
        with torch.cuda.stream(self._download):
            return self._fetch(out, results, texts)

    def _fetch(
        self, out: torch.Tensor, results: Results, texts: int
    ) -> Callable[[], BatchResult]:
        """Start the download of `results` on the current stream; what comes back waits for it."""
        host = torch.empty(results.words, pin_memory=self._on_gpu)
        host.copy_(out, non_blocking=True)
        done = torch.cuda.Event() if self._on_gpu else None
        if done is not None:
            done.record()

        def wait() -> BatchResult:
            if done is not None:
                done.synchronize()
            dense, csr, check, colbert = results.split(host)
            return BatchResult(
                dense[:texts] if results.dense else None,
                self._rows(csr, results, texts) if results.sparse else None,
                colbert if results.colbert else None,
                bool(check.isfinite().all()),
            )

        return wait

    def _rows(self, csr: torch.Tensor, results: Results, texts: int) -> SparseRows:
        indptr, indices, values = csr_views(csr, results.tokens, results.texts)
        count = int(indptr[texts])
        return SparseRows(
            indptr[: texts + 1].numpy().astype(np.int64),
            indices[:count].numpy().copy(),
            values[:count].numpy().copy(),
            self.config.vocab_size,
        )

    def _results(
        self, texts: int, tokens: int, rows: int, outputs: Outputs, options: HeadOptions
    ) -> Results:
        head, cut = self.weights.colbert, options.truncate_dim
        widths = [
            self.weights.dense_size if outputs.dense else 0,
            head.weight.shape[0] if outputs.colbert and head is not None else 0,
        ]
        dense, colbert = (w if cut is None else min(w, cut) for w in widths)
        return Results(texts, tokens, rows, dense, outputs.sparse, colbert)

    def _attention(self, longest: int) -> AttentionConfig:
        dtype = self.weights.word.dtype
        return attention_config(self.config.head_dim, dtype, longest, self.device)

    def _pinned(self, words: int) -> torch.Tensor:
        # torch keeps pinned memory and hands it out again once copies from it are done.
        return torch.empty(words, dtype=torch.int32, pin_memory=self._on_gpu)

    def _inputs(self, bucket: int, tiles: int | None = None) -> Inputs:
        """Room for a bucket's tokens and texts, and for any tiles, or so many to twice as many."""
        config, texts = self._attention(bucket), _texts(bucket)
        most = most_tiles(bucket, texts, config.short, config.rows)
        return Inputs(bucket, texts, most if tiles is None else tile_class(tiles, most))

    def _prepare(self, options: HeadOptions) -> tuple[torch.Tensor, torch.Tensor]:
        """Room for the inputs and for the results of every bucket, and the largest run once.

        That gives the workspace its size before any graph knows its addresses.
        """
        tokens = BUCKETS[-1]
        words = max(self._inputs(bucket).words for bucket in BUCKETS)
        heads = self.weights
        width = heads.colbert.weight.shape[0] if heads.colbert is not None else 0
        results = Results(_texts(tokens), tokens, tokens, heads.dense_size, True, width)
        self._words = torch.zeros(words, dtype=torch.int32, device=self.device)
        self._out = torch.zeros(results.words, device=self.device)
        outputs = Outputs(dense=True, sparse=bool(width), colbert=bool(width))
        try:
            shortest = -(-tokens // _texts(tokens))
            self._run_bucket(tokens, dummy_texts(tokens, shortest), outputs, options)
        except BaseException:  # the next batch starts over
            self._words = self._out = None
            raise
        return self._words, self._out


def _texts(bucket: int) -> int:
    return min(bucket // 2, MOST_TEXTS)


def tile_class(count: int, most: int) -> int:
    """`most`, halved while that leaves room for `count` and is not less than `FEWEST_TILES`."""
    while most // 2 >= max(count, FEWEST_TILES):
        most //= 2
    return most


def make_runner(config: ModelConfig, weights: Weights, device: torch.device) -> Runner:
    """The runner made for this device: the GPU's where its kernels take this model."""
    if not dispatch.why_not(device) and config.head_dim in HEAD_SIZES:
        return GpuRunner(config, weights, device)
    return Runner(config, weights, device)
