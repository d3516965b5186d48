"""`Engine`: texts in, embeddings out, in input order, for a caller that waits."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Self, Unpack

from m3fast.checkpoint.config import ModelConfig, Pooling
from m3fast.checkpoint.folder import resolve
from m3fast.checkpoint.sentence import Sentence
from m3fast.engine.assembly import join
from m3fast.engine.base import EngineBase
from m3fast.engine.loading import check_arguments, default_token_budget, load_runners
from m3fast.engine.options import EncodeOptions, check_keywords, lists_options
from m3fast.engine.stream import progress_bar, stream
from m3fast.errors import InputError, NonFiniteError
from m3fast.inputs import (
    CheckedTexts,
    check_iterable,
    check_padded,
    check_positive,
    check_texts,
    windows,
)
from m3fast.runner.base import HeadOptions
from m3fast.runner.device import pick_devices, pick_dtype
from m3fast.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    import torch

    from m3fast.inputs import Texts
    from m3fast.types import Embeddings

# encode_iter works on this much text at a time, so that memory does not grow with the corpus.
WINDOW_TEXTS, WINDOW_CHARACTERS = 1024, 1 << 18
# On a GPU every call does: one window is tokenized while the one before is computed.
GPU_WINDOW_TEXTS, GPU_WINDOW_CHARACTERS = 8192, 1 << 19


class Engine(EngineBase):
    """A BGE-M3 (or dense-only) encoder: packed, thread-safe, three outputs from one pass.

    Attributes:
        config: shape of the encoder; tokenizer: the checkpoint's own.
        device, dtype: where (the first device) and in what the encoder computes; torch.int8 for
            int8. Outputs are float32.
        outputs: which of dense, sparse, colbert the checkpoint has heads for.
        max_length: most tokens per text unless a call says otherwise.
        path: absolute folder of the checkpoint; sentence: its sentence-transformers settings.

    Use it as a context manager, or `close` it, to free its weights at a known time. Pickled or
    deep-copied, another process too loads the same folder again with the same arguments.
    """

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = "m3fast-tiny",
        *,
        device: str | Sequence[str] = "auto",
        dtype: str | torch.dtype = "auto",
        max_length: int | None = None,
        token_budget: int | None = None,
        pooling: Pooling | None = None,
        normalize: bool | None = None,
        truncate_dim: int | None = None,
        colbert_dim: int = -1,
        cache_dir: str | Path | None = None,
    ) -> Self:
        """Load a checkpoint, as its sentence-transformers files say where it has them.

        Args:
            model: `m3fast-tiny`, a local folder, or a hub id such as `BAAI/bge-m3`.
            device: `auto`, `cpu` or `cuda[:n]`, or several of them: each then holds the model,
                and all take batches from one queue.
            dtype: `auto`, `float32`, `float16`, `bfloat16` or, on a CPU, `int8`. `auto` is int8 for
                a checkpoint that `m3fast quantize` made, on a CPU; else bfloat16 where the hardware
                multiplies it, and float32 elsewhere. Each takes checkpoints of either kind.
            max_length: most tokens per text; None for the checkpoint's own (8,192 for BGE-M3). A
                larger value than the model has positions for is clamped, with one warning.
            token_budget: tokens per batch; None for the device's default.
            pooling: `cls`, `mean`, `last_token`, or `mcls`: a CLS every 256 tokens, their mean
                the dense vector; None for what the checkpoint says.
            normalize: L2-normalise dense and colbert vectors; None for True, unless the checkpoint
                compares its vectors by more than direction and does not normalise them.
            truncate_dim: keep this many leading dimensions of them.
            colbert_dim: rows expected in colbert_linear.pt; -1 for what it has.
            cache_dir: hub cache; None for the usual one.

        Raises:
            CheckpointError: the model is missing or broken.
            InputError: an argument is out of range.
        """
        arguments = {k: v for k, v in locals().items() if k != "cls"}  # as given
        devices = pick_devices(device)
        pick_dtype(dtype, devices[0])  # a wrong one is said before a model is fetched
        check_arguments(token_budget, truncate_dim, pooling)
        path = resolve(model, cache_dir)
        sentence = Sentence.from_dir(path)
        for note in sentence.notes:
            warnings.warn(note, RuntimeWarning, stacklevel=2)
        config = ModelConfig.from_dir(path)
        tokenizer = Tokenizer.from_dir(path)
        pooling = pooling or config.pooling
        if pooling == "mcls" and tokenizer.cls_id is None:
            raise InputError(
                f"pooling: expected a tokenizer with a CLS token for 'mcls', found {path}'s without"
            )
        as_dtype = pick_dtype(dtype, devices[0], int8=config.int8)
        runners = load_runners(path, config, devices, as_dtype, colbert_dim)
        normal = not sentence.keeps_length if normalize is None else bool(normalize)
        options = HeadOptions(pooling, normal, truncate_dim, tuple(sorted(tokenizer.dropped_ids)))
        engine = cls(
            runners,
            tokenizer,
            path,
            max_length=max_length,
            token_budget=token_budget or default_token_budget(devices[0], config),
            options=options,
            sentence=sentence,
        )
        engine._arguments = {**arguments, "model": str(model)}
        return engine

    @lists_options
    def encode(
        self,
        texts: str | Sequence[str | Sequence[int]],
        *,
        max_texts: int | None = None,
        show_progress: bool | None = None,
        **options: Unpack[EncodeOptions],
    ) -> Embeddings:
        """Encode texts in one pass for all outputs asked for.

        Args:
            texts: N texts, or token-id lists that already hold their special tokens (for `mcls`
                not those that it inserts); a single str is one text. A Series, an Arrow array or a
                numpy array of texts is taken as a list is.
            max_texts: most texts per batch, beside the token budget.
            show_progress: a tqdm bar over texts; None shows it on a terminal only.
            options: see `m3fast.engine.options.EncodeOptions`.

        Returns:
            Embeddings of N texts, in input order.

        Raises:
            InputError: an argument is not as described, or an output has no head.
            NonFiniteError: the model gives nan or infinity for a text; names it.
            ProcessError: called in a forked child; EngineClosedError: after `close`.
        """
        call = self.call("Engine.encode", **options)
        if max_texts is not None:
            check_positive("max_texts", max_texts)
        # All texts are checked before the first is encoded.
        given = self.tokenizer.check(check_texts(texts))
        parts: Iterable[Texts] = [given]
        if self.device.type != "cpu" and given:
            parts = windows(given, call.max_length, GPU_WINDOW_TEXTS, GPU_WINDOW_CHARACTERS)
            parts = map(CheckedTexts, parts)
        with progress_bar(len(given), show_progress) as bar:
            return join(list(stream(self, parts, call, max_texts, bar.update)))

    @lists_options
    def encode_iter(
        self,
        texts: Iterable[str | Sequence[int]],
        *,
        show_progress: bool | None = None,
        **options: Unpack[EncodeOptions],
    ) -> Iterator[Embeddings]:
        """Encode any number of texts in windows, in order, with memory bounded by the window.

        Args:
            texts: any iterable, a generator too; the rest as in `encode`.

        Yields:
            Embeddings of consecutive texts: up to 1,024 of them, 8,192 on a GPU.
        """
        check_keywords("Engine.encode_iter", options)
        return self._encode_iter(texts, show_progress, options)

    def _encode_iter(
        self, texts: Any, show_progress: bool | None, options: EncodeOptions
    ) -> Iterator[Embeddings]:
        call = self.call(**options)
        texts = check_iterable(texts)
        size = (WINDOW_TEXTS, WINDOW_CHARACTERS)
        if self.device.type != "cpu":
            size = (GPU_WINDOW_TEXTS, GPU_WINDOW_CHARACTERS)
        parts = windows(texts, call.max_length, *size)
        with progress_bar(None, show_progress) as bar:
            yield from stream(self, parts, call, None, bar.update)

    def hidden_states(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The encoder alone, for padded batches such as transformers' tokenizers make.

        Padding is left out of the computation. On a GPU the call returns before the result is
        there, as torch's own operations do.

        Args:
            input_ids: int32 or int64 [B, L], on any device.
            attention_mask: bool or integers [B, L], 0 at padding on either side; None for none.

        Returns:
            Last hidden states [B, L, H] on the engine's device, in its dtype; 0 at padding. On a
            GPU nothing has looked whether they are finite: that would be waiting for them.

        Raises:
            InputError: a wrong type, dtype or shape, an id without a row, a row that is too long.
            NonFiniteError: on a CPU: the model gives nan or infinity for a row.
            ProcessError: called in a forked child; EngineClosedError: after `close`.
        """
        self._check_process()
        ids, mask = check_padded(
            input_ids, attention_mask, self.config.vocab_size, self.config.max_length
        )
        hidden = self.runner.hidden_states(ids, mask)
        if self.device.type == "cpu" and not hidden.sum().isfinite():
            bad = ~hidden.isfinite().flatten(1).all(1)
            if bad.any():
                raise NonFiniteError(int(bad.nonzero()[0]), "hidden")
        return hidden

    @lists_options
    def warmup(self, **options: Unpack[EncodeOptions]) -> None:
        """Make everything ready for calls with these options, so that no request waits for it.

        On a GPU this compiles the kernels and captures the CUDA graphs of small batches.
        """
        call = self.call("Engine.warmup", **options)
        for runner in self.runners:
            runner.warmup(call.outputs, call.options)
