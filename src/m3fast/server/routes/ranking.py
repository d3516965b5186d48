"""Scores of texts that were encoded together; large ones are computed off the event loop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from m3fast import scoring
from m3fast.server.http.errors import Problem
from m3fast.server.routes.checks import check_heads, check_list
from m3fast.server.routes.encoding import encode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from m3fast.server.http.context import RequestContext
    from m3fast.types import Embeddings

Mode = Literal["hybrid", "colbert", "dense", "sparse"]
MODES = ("dense", "sparse", "colbert")
# Multiplications of MaxSim and dense products that are done on the event loop: well below a
# millisecond's.
INLINE_PRODUCTS = 4 << 20
# More would occupy a processor for seconds; a query of 512 tokens with 65,536 tokens of passages at
# 1,024 dimensions is an eighth.
MOST_PRODUCTS = 1 << 38


async def rank(
    context: RequestContext,
    query: str | list[int],
    texts: Sequence[str | list[int]],
    param: str,
    *,
    mode: Mode | None = None,
    weights: str | Sequence[float] | None = None,
    max_length: int | None = None,
    truncate: bool | None = None,
) -> NDArray[np.float32]:
    """Scores [n] of the texts for the query, both encoded in one request.

    Args:
        param: what the client calls the texts.
        mode: None for hybrid, or dense where the model has nothing else.
        weights: of hybrid: (dense, sparse, colbert) or a name; None for "miracl".
    """
    engine = context.service.engine.engine
    if not texts:
        raise Problem("empty", f"{param}: expected at least one text, found none", param)
    check_list(context, len(texts), param)
    if weights is not None and mode not in (None, "hybrid"):
        raise Problem("validation", f"weights: expected none with mode {mode}", "weights")
    if mode is None:
        mode = "hybrid" if engine.outputs.colbert or weights is not None else "dense"
    by_mode = {mode: 1.0}
    if mode == "hybrid":
        by_mode = {k: w for k, w in check_weights(weights or "miracl").items() if w}
    sparse, colbert = "sparse" in by_mode, "colbert" in by_mode
    check_heads(engine, "mode", sparse=sparse, colbert=colbert)
    found = await encode(
        context,
        [query, *texts],
        lambda i: f"{param}[{i - 1}]" if i else "query",
        max_length=max_length,
        truncate=truncate,
        dense="dense" in by_mode,
        sparse=sparse,
        colbert=colbert,
    )

    def scores() -> NDArray[np.float32]:
        parts = scoring.all_scores(found.view(0, 1), found.view(1, len(found)))
        if mode != "hybrid":
            return parts[mode][0]
        triple = [by_mode.get(name, 0.0) for name in MODES]
        return scoring.hybrid_scores(parts, triple)[0]

    pairs = np.stack([np.zeros(len(texts), np.int64), np.arange(1, len(found))], 1)
    return await computed(context, scores, products(found, pairs))


def check_weights(weights: str | Sequence[float]) -> dict[str, float]:
    """Weights by mode.

    Raises:
        Problem: they sum to nothing.
    """
    found = scoring.check_weights(weights)
    if sum(found.values()) < 1e-6:
        raise Problem("validation", "weights: expected a sum above 0, found 0", "weights")
    return found


async def computed(context: RequestContext, work: Callable[[], Any], size: int) -> Any:
    """The result of `work`, of about `size` multiplications."""
    if size <= INLINE_PRODUCTS:
        return work()
    return await asyncio.get_running_loop().run_in_executor(context.service.pool, work)


def products(found: Embeddings, pairs: NDArray[np.int64]) -> int:
    """Multiplications for the scores of these (query, passage) pairs.

    Raises:
        Problem: more than a request may cost.
    """
    size = 0 if found.dense is None else len(pairs) * found.dense.shape[1]
    if (vectors := found.colbert) is not None:
        lengths = vectors.lengths[pairs]
        size += int(lengths.prod(1).sum()) * vectors.values.shape[1]
    if size > MOST_PRODUCTS:
        raise Problem(
            "validation",
            f"texts: expected at most {MOST_PRODUCTS} products for a request's scores, "
            f"found {size}; send fewer or shorter texts at a time",
        )
    return size
