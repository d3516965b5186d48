"""What the methods of an engine stand on: runners, tokenizer, defaults of options, lifetime."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self, Unpack

import numpy as np

from m3fast.checkpoint.folder import again
from m3fast.checkpoint.sentence import Sentence
from m3fast.engine.options import (
    Call,
    EncodeOptions,
    check_keywords,
    chosen_outputs,
    lists_options,
)
from m3fast.errors import EngineClosedError, InputError, ProcessError
from m3fast.inputs import CheckedTexts, check_positive
from m3fast.model.mcls import insert_cls, plain_limit
from m3fast.runner.base import HeadOptions, Outputs

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from m3fast.inputs import Texts
    from m3fast.runner.cpu import Runner
    from m3fast.text.tokenizer import Tokenizer
    from m3fast.types import TokenIds


class EngineBase:
    """See `m3fast.Engine`."""

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
        self.dtype = runner.weights.dtype
        self.token_budget, self.options = token_budget, options
        has_heads = runner.weights.sparse is not None
        self.outputs = Outputs(dense=True, sparse=has_heads, colbert=has_heads)
        self._pid = os.getpid()
        self._clamp_said = False
        self.max_length = min(self.config.max_length, self.sentence.max_length or 1 << 31)
        if max_length is not None:
            self.max_length = self._check_max_length(max_length)

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

    @lists_options
    def call(self, method: str = "Engine.call", /, **options: Unpack[EncodeOptions]) -> Call:
        """What these options ask for.

        Args:
            method: whose keywords they are, for the error about one that does not exist.

        Raises:
            InputError: an argument is not as described, or an output has no head.
            ProcessError: called in a forked child; EngineClosedError: after `close`.
        """
        check_keywords(method, options)
        self._check_process()
        outputs = chosen_outputs(self.outputs, options, self.path)
        max_length, truncate_dim = options.get("max_length"), options.get("truncate_dim")
        limit = self.max_length if max_length is None else self._check_max_length(max_length)
        how = self.options
        if truncate_dim is not None:
            check_positive("truncate_dim", truncate_dim)
            how = replace(how, truncate_dim=truncate_dim)
        normalize = options.get("normalize")
        if normalize is not None and normalize != how.normalize:
            how = replace(how, normalize=bool(normalize))
        return Call(outputs, how, limit, self.prompt(options.get("prompt_name")))

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
        return prompts[name] if name else ""

    def tokenize(self, texts: Texts, max_length: int, prompt: str = "") -> TokenIds:
        """Token ids as the encoder sees them: `Tokenizer.encode`, with CLS tokens for `mcls`.

        These count as tokens: with them a text has at most max_length. `prompt` is put before each
        text, token ids are used as they are.
        """
        given = self.tokenizer.check(texts)
        if prompt:
            self.tokenizer.check([prompt])
            given = CheckedTexts(prompt + t if isinstance(t, str) else t for t in given)
        if self.options.pooling != "mcls" or self.tokenizer.cls_id is None:
            return self.tokenizer.encode(given, max_length)
        tokens = self.tokenizer.encode(given, plain_limit(max_length))
        return insert_cls(tokens, self.tokenizer.cls_id)

    tokenise = tokenize  # its name in earlier versions

    def _check_process(self) -> None:
        _ = self.runners  # closed?
        if os.getpid() != self._pid:
            raise ProcessError(
                f"engine: made in process {self._pid} and used in its forked child {os.getpid()}; "
                "load it after the fork, or start workers with the 'spawn' method"
            )

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


def _again(cls: Any, path: str, arguments: dict[str, Any]) -> Any:
    """Load what was loaded before."""
    given: dict[str, Any] = {**arguments, "model": again(path, arguments["model"])}
    return cls.from_pretrained(**given)
