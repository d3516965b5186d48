"""Relevance scores of encoded queries and passages: all pairs, or a list of pairs.

    dense    q . p
    lexical  sum over shared token ids of w_q * w_p
    colbert  mean over query tokens of the best q_i . p_j  (MaxSim, divided by the query's tokens)
    hybrid   (w_d * dense + w_s * lexical + w_c * colbert) / (w_d + w_s + w_c)

Source: M3-Embedding, arXiv 2402.03216, sections 3.2 and 4; weights stand in the paper's order,
dense, sparse, multi-vector.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from m3fast.errors import InputError
from m3fast.kernels import maxsim as _maxsim
from m3fast.kernels import sparse as _sparse
from m3fast.model.inference import inference

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from m3fast.types import Embeddings, SparseRows, TokenVectors

    Scores = NDArray[np.float32]
    Pairs = NDArray[np.int64] | Sequence[tuple[int, int]] | None

# (dense, sparse, multi-vector), from the paper's section 4 and appendix.
PAPER_WEIGHTS = {
    "miracl": (1.0, 0.3, 1.0),
    "mkqa": (1.0, 0.3, 1.0),
    "mldr": (0.15, 0.5, 0.35),
    "miracl-dense-sparse": (1.0, 0.3, 0.0),
    "mldr-dense-sparse": (0.2, 0.8, 0.0),
}


def dense_scores(
    queries: NDArray[np.float32], passages: NDArray[np.float32], pairs: Pairs = None
) -> Scores:
    """Inner products of dense vectors.

    Args:
        queries: float32 [n, H]; passages: float32 [m, H].
        pairs: P (query, passage) row numbers, or None for all.

    Returns:
        float32 [n, m], or [P].

    Raises:
        InputError: widths differ, or a pair points nowhere.
    """
    if queries.ndim != 2 or passages.ndim != 2 or queries.shape[1] != passages.shape[1]:
        raise InputError(
            f"passages: expected shape [m, {queries.shape[-1]}] as queries have, "
            f"found {list(passages.shape)}"
        )
    if pairs is None:
        return queries @ passages.T
    rows = check_pairs(pairs, len(queries), len(passages))
    return np.einsum("ph,ph->p", queries[rows[:, 0]], passages[rows[:, 1]])


def lexical_scores(queries: SparseRows, passages: SparseRows, pairs: Pairs = None) -> Scores:
    """Products of lexical weights summed over shared token ids: float32 [n, m], or [P]."""
    rows = None if pairs is None else check_pairs(pairs, len(queries), len(passages))
    return _sparse.lexical_scores(
        (queries.indptr, queries.indices, queries.values),
        (passages.indptr, passages.indices, passages.values),
        rows,
    )


def colbert_scores(queries: TokenVectors, passages: TokenVectors, pairs: Pairs = None) -> Scores:
    """MaxSim over real tokens only, divided by the query's tokens: float32 [n, m], or [P]."""
    rows = None if pairs is None else check_pairs(pairs, len(queries), len(passages))
    with inference():
        return _maxsim.maxsim(
            torch.from_numpy(queries.values),
            queries.offsets,
            torch.from_numpy(passages.values),
            passages.offsets,
            rows,
        ).numpy()


def hybrid_scores(
    scores: dict[str, Scores], weights: str | Sequence[float] = (1.0, 0.3, 1.0)
) -> Scores:
    """Weighted mean of the modes in `scores`.

    Args:
        scores: any of "dense", "sparse", "colbert", all of one shape.
        weights: (dense, sparse, colbert), or a name in PAPER_WEIGHTS. A mode that `scores` lacks
            takes no part in sum or divisor.

    Raises:
        InputError: an unknown mode or name, not three weights, or weights that sum to zero.
    """
    triple = check_weights(weights)
    if unknown := set(scores) - set(triple):
        raise InputError(f"scores: expected keys among {list(triple)}, found {sorted(unknown)}")
    total = sum(triple[mode] for mode in scores)
    if total == 0:
        raise InputError(f"weights: expected a sum other than zero over {list(scores)}, found 0")
    parts = [np.float32(triple[mode]) * values for mode, values in scores.items()]
    return np.sum(parts, axis=0, dtype=np.float32) / np.float32(total)  # pyright: ignore[reportReturnType]


def all_scores(queries: Embeddings, passages: Embeddings, pairs: Pairs = None) -> dict[str, Scores]:
    """Scores of every mode that both sides were encoded for, keys "dense", "sparse", "colbert"."""
    scores: dict[str, Scores] = {}
    if queries.dense is not None and passages.dense is not None:
        scores["dense"] = dense_scores(queries.dense, passages.dense, pairs)
    if queries.sparse is not None and passages.sparse is not None:
        scores["sparse"] = lexical_scores(queries.sparse, passages.sparse, pairs)
    if queries.colbert is not None and passages.colbert is not None:
        scores["colbert"] = colbert_scores(queries.colbert, passages.colbert, pairs)
    return scores


def check_weights(weights: Any) -> dict[str, float]:
    """(dense, sparse, colbert) weights by mode name, or InputError.

    Args:
        weights: three finite numbers in a list, a tuple, an array; or a name in PAPER_WEIGHTS.
    """
    if isinstance(weights, str):
        if weights not in PAPER_WEIGHTS:
            raise InputError(f"weights: expected one of {list(PAPER_WEIGHTS)}, found {weights!r}")
        weights = PAPER_WEIGHTS[weights]
    try:
        triple = [float(weight) for weight in weights]
    except (TypeError, ValueError):  # no sequence, or not of numbers
        triple = []
    if len(triple) != 3 or not np.isfinite(triple).all():
        raise InputError(
            f"weights: expected three numbers (dense, sparse, colbert), found {weights!r:.80}"
        )
    return dict(zip(("dense", "sparse", "colbert"), triple, strict=True))


def check_pairs(
    pairs: NDArray[np.int64] | Sequence[tuple[int, int]], n: int, m: int
) -> NDArray[np.int64]:
    """int64 [P, 2] with every row number in range, or InputError."""
    rows = np.asarray(pairs, np.int64).reshape(-1, 2)
    if len(rows) and (rows.min() < 0 or rows[:, 0].max() >= n or rows[:, 1].max() >= m):
        found = rows.max(axis=0).tolist()
        raise InputError(f"pairs: expected rows from 0 to below ({n}, {m}), found up to {found}")
    return rows


SCORES = ("colbert", "sparse", "dense", "sparse+dense", "colbert+sparse+dense")


def combine(found: dict[str, NDArray[np.float32]], weights: list[float]) -> dict[str, Any]:
    """The reference's five scores from three, with weights (dense, sparse, colbert)."""
    d, s, c = weights
    dense, sparse, colbert = found["dense"], found["sparse"], found["colbert"]
    with np.errstate(divide="ignore", invalid="ignore"):  # weights may sum to 0, as there
        some = (s * sparse + d * dense) / np.float32(s + d)
        every = (c * colbert + s * sparse + d * dense) / np.float32(d + s + c)
    return dict(zip(SCORES, (colbert, sparse, dense, some, every), strict=True))
