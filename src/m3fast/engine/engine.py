"""The engine: texts go in, embeddings come out, in input order, whatever the batches were."""

from __future__ import annotations

import os
import sys
import warnings
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self, get_args

import numpy as np

from m3fast.checkpoint.config import ModelConfig, Pooling
from m3fast.checkpoint.folder import again, resolve
from m3fast.checkpoint.sentence import Sentence
from m3fast.checkpoint.weights import load_weights
from m3fast.engine import pipeline
from m3fast.engine.assembly import Window, join
from m3fast.engine.plan import plan_batches
from m3fast.errors import EngineClosedError, InputError, NonFiniteError, ProcessError
from m3fast.inputs import check_iterable, check_padded, check_positive, check_texts, windows
from m3fast.model.mcls import insert_cls, plain_limit
from m3fast.runner.base import HeadOptions, Outputs
from m3fast.runner.device import pick_devices, pick_dtype
from m3fast.runner.gpu import make_runner
from m3fast.text.tokenizer import Tokenizer
from m3fast.types import Selection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    import torch

    from m3fast.inputs import Texts
    from m3fast.runner.cpu import Runner
    from m3fast.types import Embeddings, TokenIds

# Tokens per batch. On a CPU larger batches only outgrow the caches, at so many numbers per hidden
# state buffer: 1,024 tokens of BGE-M3, more of a narrower model, whose batches are sooner done and
# should not be all Python. A GPU wants large ones.
CPU_TOKENS_TIMES_WIDTH, CPU_TOKEN_BUDGET, GPU_TOKEN_BUDGET = 1 << 20, 1024, 32768
# encode_iter works on this much text at a time, so that memory does not grow with the corpus.
WINDOW_TEXTS, WINDOW_CHARACTERS = 1024, 1 << 18
# On a GPU every call does: one window is tokenised while the one before is computed.
GPU_WINDOW_TEXTS, GPU_WINDOW_CHARACTERS = 8192, 1 << 19


@dataclass(frozen=True, slots=True)
class Call:
    """What one call asks for, checked.

    Attributes:
        outputs, options: what is made, and how; max_length: most tokens per text.
        prompt: put before each text.
    """

    outputs: Outputs
    options: HeadOptions
    max_length: int
    prompt: str = ""


class Engine:
    """A BGE-M3 (or dense-only) encoder: packed, thread-safe, three outputs from one pass.

    Attributes:
        config: shape of the encoder; tokenizer: the checkpoint's own.
        device, dtype: where (the first device) and in what the encoder computes. Outputs are
            float32.
        outputs: which of dense, sparse, colbert the checkpoint has heads for.
        max_length: most tokens per text unless a call says otherwise.
        path: absolute folder of the checkpoint; sentence: its sentence-transformers settings.

    Use it as a context manager, or `close` it, to free its weights at a known time. Pickled or
    deep-copied, another process too loads the same folder again with the same arguments.
    """

    def __init__(
        self,
        runners: Sequence[Runner],
        tokenizer: Tokenizer,
        path: Path,
        *,
        max_length: int | None,
        token_budget: int,
        options: HeadOptions,
        sentence: Sentence | None = None,
    ) -> None:
        """Use `Engine.from_pretrained`."""
        self._runners, self.tokenizer, self.path = list(runners), tokenizer, path
        self.sentence = sentence or Sentence(path)
        self._arguments: dict[str, Any] = {}  # of from_pretrained
        runner = self._runners[0]
        self.config, self.device = runner.config, runner.device
        self.dtype = runner.weights.word.dtype
        self.token_budget, self.options = token_budget, options
        has_heads = runner.weights.sparse is not None
        self.outputs = Outputs(dense=True, sparse=has_heads, colbert=has_heads)
        self._pid = os.getpid()
        self._clamp_said = False
        self.max_length = min(self.config.max_length, self.sentence.max_length or 1 << 31)
        if max_length is not None:
            self.max_length = self._check_max_length(max_length)

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
            dtype: `auto` (bfloat16 where the hardware multiplies it, else float32), `float32`,
                `float16` or `bfloat16`.
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
        as_dtype = pick_dtype(dtype, devices[0])
        if token_budget is not None:
            check_positive("token_budget", token_budget)
        if truncate_dim is not None:
            check_positive("truncate_dim", truncate_dim)
        if pooling not in (None, *get_args(Pooling)):
            raise InputError(f"pooling: expected one of {get_args(Pooling)}, found {pooling!r}")
        path = resolve(model, cache_dir)
        sentence = Sentence.from_dir(path)
        for note in sentence.notes:
            warnings.warn(note, RuntimeWarning, stacklevel=2)
        config = ModelConfig.from_dir(path)
        tokenizer = Tokenizer.from_dir(path)
        pooling = pooling or config.pooling
        if pooling == "mcls" and tokenizer.cls_id is None:
            raise InputError(f"pooling: 'mcls' needs a CLS token, which {path}'s tokenizer has not")
        if token_budget is None:
            token_budget = GPU_TOKEN_BUDGET
            if devices[0].type == "cpu":
                token_budget = max(CPU_TOKEN_BUDGET, CPU_TOKENS_TIMES_WIDTH // config.hidden_size)

        def runner(on: torch.device) -> Runner:
            pack = on.type == "cpu"
            weights = load_weights(path, config, on, as_dtype, colbert_dim, pack=pack)
            return make_runner(config, weights, on)

        runners = [runner(on) for on in devices]
        normal = not sentence.keeps_length if normalize is None else bool(normalize)
        options = HeadOptions(pooling, normal, truncate_dim, tuple(sorted(tokenizer.dropped_ids)))
        engine = cls(
            runners,
            tokenizer,
            path,
            max_length=max_length,
            token_budget=token_budget,
            options=options,
            sentence=sentence,
        )
        engine._arguments = {**arguments, "model": str(model)}
        return engine

    def __reduce__(self) -> tuple[Any, ...]:
        if not self._arguments:
            raise TypeError("Engine: expected one made by from_pretrained, to be loaded again")
        return _again, (type(self), str(self.path), self._arguments)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the weights once no call uses them any more; new calls raise EngineClosedError."""
        self._runners.clear()

    @property
    def runners(self) -> list[Runner]:
        """One per device."""
        if not self._runners:
            raise EngineClosedError("engine: it has been closed")
        return self._runners

    @runners.setter
    def runners(self, runners: Sequence[Runner]) -> None:
        self._runners = list(runners)

    @property
    def runner(self) -> Runner:
        """The first device's."""
        return self.runners[0]

    def encode(
        self,
        texts: str | Sequence[str | Sequence[int]],
        *,
        dense: bool | None = None,
        sparse: bool | None = None,
        colbert: bool | None = None,
        max_length: int | None = None,
        max_texts: int | None = None,
        truncate_dim: int | None = None,
        normalize: bool | None = None,
        prompt_name: str | None = None,
        show_progress: bool | None = None,
    ) -> Embeddings:
        """Encode texts in one pass for all outputs asked for.

        Args:
            texts: N texts, or token-id lists that already hold their special tokens (for `mcls`
                not those that it inserts); a single str is one text. A Series, an Arrow array or a
                numpy array of texts is taken as a list is.
            dense, sparse, colbert: True, False, or None for what the checkpoint has.
            max_length: most tokens per text; longer ones are cut on the right.
            max_texts: most texts per batch, beside the token budget.
            truncate_dim: leading dimensions to keep of dense and colbert vectors; None for the
                engine's own.
            normalize: L2-normalise dense and colbert vectors; None for the engine's own.
            prompt_name: which of the checkpoint's prompts stands before each text (not before
                ids); None for its default one, "" for none.
            show_progress: a tqdm bar over texts; None shows it on a terminal only.

        Returns:
            Embeddings of N texts, in input order.

        Raises:
            InputError: an argument is not as described, or an output has no head.
            NonFiniteError: the model gives nan or infinity for a text; names it.
            ProcessError: called in a forked child; EngineClosedError: after `close`.
        """
        call = self.call(dense, sparse, colbert, max_length, truncate_dim, normalize, prompt_name)
        if max_texts is not None:
            check_positive("max_texts", max_texts)
        given = check_texts(texts)
        parts: Iterable[Texts] = [given]
        if self.device.type != "cpu" and given:
            # The last window is tokenised late: all texts are checked before the first.
            checked = self.tokenizer.check(given)
            parts = windows(checked, call.max_length, GPU_WINDOW_TEXTS, GPU_WINDOW_CHARACTERS)
        with _progress(len(given), show_progress) as progress:
            return join(list(self._stream(parts, call, max_texts, progress.update)))

    def encode_iter(
        self,
        texts: Iterable[str | Sequence[int]],
        *,
        dense: bool | None = None,
        sparse: bool | None = None,
        colbert: bool | None = None,
        max_length: int | None = None,
        prompt_name: str | None = None,
        show_progress: bool | None = None,
    ) -> Iterator[Embeddings]:
        """Encode any number of texts in windows, in order, with memory bounded by the window.

        Args:
            texts: any iterable, a generator too; the rest as in `encode`.

        Yields:
            Embeddings of consecutive texts: up to 1,024 of them, 8,192 on a GPU.
        """
        call = self.call(dense, sparse, colbert, max_length, prompt_name=prompt_name)
        texts = check_iterable(texts)
        size = (WINDOW_TEXTS, WINDOW_CHARACTERS)
        if self.device.type != "cpu":
            size = (GPU_WINDOW_TEXTS, GPU_WINDOW_CHARACTERS)
        parts = windows(texts, call.max_length, *size)
        with _progress(None, show_progress) as progress:
            yield from self._stream(parts, call, None, progress.update)

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
        ids, mask = check_padded(input_ids, attention_mask)
        used = ids[mask != 0]
        low, high = (int(v) for v in used.aminmax()) if len(used) else (0, 0)
        if not 0 <= low <= high < self.config.vocab_size:
            raise InputError(
                f"input_ids: expected 0 to {self.config.vocab_size - 1}, found {low} to {high}"
            )
        if ids.shape[1] > self.config.max_length:
            raise InputError(
                f"input_ids: expected at most {self.config.max_length} columns, "
                f"found {ids.shape[1]}"
            )
        hidden = self.runner.hidden_states(ids, mask)
        if self.device.type == "cpu" and not hidden.sum().isfinite():
            bad = ~hidden.isfinite().flatten(1).all(1)
            if bad.any():
                raise NonFiniteError(int(bad.nonzero()[0]), "hidden")
        return hidden

    def warmup(
        self, *, dense: bool | None = None, sparse: bool | None = None, colbert: bool | None = None
    ) -> None:
        """Make everything ready for calls with these outputs, so that no request waits for it.

        On a GPU this compiles the kernels and captures the CUDA graphs of small batches.
        """
        call = self.call(dense, sparse, colbert)
        for runner in self.runners:
            runner.warmup(call.outputs, call.options)

    def call(
        self,
        dense: bool | None = None,
        sparse: bool | None = None,
        colbert: bool | None = None,
        max_length: int | None = None,
        truncate_dim: int | None = None,
        normalize: bool | None = None,
        prompt_name: str | None = None,
    ) -> Call:
        """What these arguments of `encode` ask for.

        Raises:
            InputError: an argument is not as described, or an output has no head.
            ProcessError: called in a forked child; EngineClosedError: after `close`.
        """
        self._check_process()
        outputs = self._check_outputs(dense, sparse, colbert)
        limit = self.max_length if max_length is None else self._check_max_length(max_length)
        options = self.options
        if truncate_dim is not None:
            check_positive("truncate_dim", truncate_dim)
            options = replace(options, truncate_dim=truncate_dim)
        if normalize is not None and normalize != options.normalize:
            options = replace(options, normalize=bool(normalize))
        return Call(outputs, options, limit, self.prompt(prompt_name))

    def prompt(self, name: str | None) -> str:
        """The text of a prompt of the checkpoint: None for its default one, "" for none.

        Raises:
            InputError: it has no prompt of this name.
        """
        prompts = self.sentence.prompts
        if name is None:
            name = self.sentence.default_prompt or ""
        if name and name not in prompts:
            raise InputError(
                f"prompt_name: expected None, '' or one of {list(prompts)}, found {name!r:.80}"
            )
        return prompts.get(name, "") if name else ""

    def tokenise(self, texts: Texts, max_length: int, prompt: str = "") -> TokenIds:
        """Token ids as the encoder sees them: `Tokenizer.encode`, with CLS tokens for `mcls`.

        These count as tokens: with them a text has at most max_length. `prompt` is put before each
        text, token ids are used as they are.
        """
        if prompt:
            texts = [prompt + text if isinstance(text, str) else text for text in texts]
        if self.options.pooling != "mcls" or self.tokenizer.cls_id is None:
            return self.tokenizer.encode(texts, max_length)
        tokens = self.tokenizer.encode(texts, plain_limit(max_length))
        return insert_cls(tokens, self.tokenizer.cls_id)

    def window(self, tokens: TokenIds, call: Call, first: int = 0) -> Window:
        """Room for what `call` asks of these texts, of which the first has this index in it."""
        weights, cut, outputs = self.runner.weights, call.options.truncate_dim, call.outputs

        def width(full: int) -> int:
            return full if cut is None else min(full, cut)

        return Window(
            tokens,
            width(weights.dense_size) if outputs.dense else None,
            width(weights.colbert.weight.shape[0]) if outputs.colbert and weights.colbert else None,
            self.config.vocab_size if outputs.sparse else None,
            call.options.pooling,
            first,
        )

    def _stream(
        self,
        parts: Iterable[Texts],
        call: Call,
        max_texts: int | None,
        progress: Callable[[int], Any],
    ) -> Iterator[Embeddings]:
        """Each window's Embeddings, in order."""
        waiting: deque[Window] = deque()

        def tasks() -> Iterator[pipeline.Task]:
            first = 0
            for tokens in self._tokenised(parts, call):
                window = self.window(tokens, call, first)
                first += len(tokens)
                waiting.append(window)
                for order in plan_batches(window.lengths, self.token_budget, max_texts):
                    part = Selection(tokens, order)
                    yield pipeline.Task([part], call.outputs, call.options, window)

        for task, result in pipeline.run(self.runners, tasks()):
            task.owner.add(task.parts[0].order, result)
            progress(len(task))
            while waiting and waiting[0].done:
                yield waiting.popleft().finish()
        while waiting:  # windows without a text, which made no batch
            yield waiting.popleft().finish()

    def _tokenised(self, parts: Iterable[Texts], call: Call) -> Iterator[TokenIds]:
        """Token ids of each window; beside a GPU, in a thread, one window ahead."""
        given = (call.max_length, call.prompt)
        if self.device.type == "cpu":
            yield from (self.tokenise(part, *given) for part in parts)
            return
        with ThreadPoolExecutor(1) as pool:
            ahead: Future[TokenIds] | None = None
            for part in parts:
                this, ahead = ahead, pool.submit(self.tokenise, part, *given)
                if this is not None:
                    yield this.result()
            if ahead is not None:
                yield ahead.result()

    def _check_process(self) -> None:
        _ = self.runners  # closed?
        if os.getpid() != self._pid:
            raise ProcessError(
                f"engine: made in process {self._pid} and used in its forked child {os.getpid()}; "
                "load it after the fork, or start workers with the 'spawn' method"
            )

    def _check_outputs(
        self, dense: bool | None, sparse: bool | None, colbert: bool | None
    ) -> Outputs:
        chosen: dict[str, bool] = {}
        for name, asked in (("dense", dense), ("sparse", sparse), ("colbert", colbert)):
            has = bool(getattr(self.outputs, name))
            if asked and not has:
                raise InputError(
                    f"{name}: expected None or False, found True: "
                    f"{self.path} has no {name}_linear.pt"
                )
            chosen[name] = has if asked is None else bool(asked)
        if not any(chosen.values()):
            raise InputError("dense, sparse, colbert: expected at least one, found none")
        return Outputs(**chosen)

    def _check_max_length(self, max_length: int) -> int:
        if not isinstance(max_length, int | np.integer) or isinstance(max_length, bool):
            raise InputError(f"max_length: expected an integer, found {max_length!r}")
        if max_length < 3:
            raise InputError(f"max_length: expected at least 3, found {max_length}")
        limit = self.config.max_length
        if max_length > limit and not self._clamp_said:
            self._clamp_said = True
            warnings.warn(
                f"max_length: {max_length} is more than this model's {limit}, which is used",
                RuntimeWarning,
                stacklevel=4,
            )
        return min(int(max_length), limit)


def _again(cls: type[Engine], path: str, arguments: dict[str, Any]) -> Engine:
    """Load what was loaded before."""
    given: dict[str, Any] = {**arguments, "model": again(path, arguments["model"])}
    return cls.from_pretrained(**given)


def _progress(total: int | None, show: bool | None) -> Any:
    if not (sys.stderr.isatty() if show is None else show):
        return nullcontext(SimpleNamespace(update=lambda _: None))
    from tqdm import tqdm

    return tqdm(total=total, unit="texts", delay=1.0)  # short work stays silent
