"""What a request must be like before it joins a batch: checks of limits, lane and token ids."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import numpy as np

from m3fast.aio.types import Lane
from m3fast.errors import InputError
from m3fast.inputs import check_positive

if TYPE_CHECKING:
    from m3fast.aio.types import Limits
    from m3fast.engine.engine import Engine
    from m3fast.engine.options import Call
    from m3fast.types import TokenIds


def check_limits(limits: Limits) -> None:
    """InputError unless all that must be positive is."""
    counts = ("queue_tokens", "request_texts", "text_characters", "request_characters")
    for name in (*counts, "output_bytes", "tokenizer_threads"):
        check_positive(name, getattr(limits, name))
    if limits.cpu_batches is not None:
        check_positive("cpu_batches", limits.cpu_batches)


def check_lane(lane: str) -> None:
    """InputError unless there is such a lane."""
    if lane not in get_args(Lane):
        raise InputError(f"lane: expected 'auto', 'query' or 'bulk', found {lane!r}")


def check_tokens(
    tokens: TokenIds, call: Call, engine: Engine, limits: Limits, *, truncate: bool
) -> None:
    """Checks that need token ids, before a request joins a batch.

    Raises:
        InputError: a text had to be cut though `truncate` is False, an id has no row in the
            model, or the vectors take more room than the limits allow.
    """
    config = engine.config
    if not truncate and tokens.truncated.any():
        first = int(np.flatnonzero(tokens.truncated)[0])
        raise InputError(f"texts[{first}]: expected at most {call.max_length} tokens, found more")
    if len(tokens.ids) and int(tokens.ids.max()) >= config.vocab_size:
        raise InputError(
            f"texts: expected token ids below {config.vocab_size}, found {int(tokens.ids.max())}"
        )
    width = engine.runner.weights.colbert_size if call.outputs.colbert else 0
    size = 4 * len(tokens.ids) * call.options.width(width)
    if size > limits.output_bytes:
        raise InputError(
            f"colbert: expected at most {limits.output_bytes} bytes of vectors in a "
            f"request, found {size}; send fewer texts at a time"
        )
