"""Lexical weights: token weights to CSR rows, and dot products of such rows."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from . import checks, dispatch, native
from .reference import sparse_csr_ref

# indptr int64 [N + 1], indices int32 [nnz], values fp32 [nnz]; ids are unique within a row.
Rows = tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]


def sparse_rows(
    ids: NDArray[np.int32] | torch.Tensor,
    weights: NDArray[np.float32] | torch.Tensor,
    cu_seqlens: NDArray[np.int32] | torch.Tensor,
    dropped: Sequence[int],
) -> Rows:
    """row[i] = max of the weights of token id i within one text, for weights > 0.

    Args:
        ids: int32 [T], numpy or a CPU tensor, as all arrays here.
        weights: fp32 [T]; what is not > 0 is left out. A NaN counts as infinity, so that no row
            hides it.
        cu_seqlens: int32 [N + 1].
        dropped: ids left out, such as those of <s> and </s>.

    Returns:
        CSR rows as numpy arrays (indptr int64 [N + 1], indices int32 [nnz], values fp32 [nnz]);
        within a row ids stand in the order of their first weight > 0.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, or offsets that do not fit T.
    """
    tokens = checks.array("ids", ids, np.int32)
    values = checks.array("weights", weights, np.float32)
    if len(values) != len(tokens):
        raise ValueError(f"weights: shape [{len(tokens)}] was expected, got [{len(values)}]")
    ends = checks.offsets("cu_seqlens", cu_seqlens, len(tokens), np.int32)
    drop = np.asarray(dropped, np.int32)

    if lib := native.library():
        return lib.sparse_rows(tokens, values, ends, drop.tolist(), native.threads())
    return _sparse_rows_numpy(tokens, values, ends, drop)


def _sparse_rows_numpy(
    ids: NDArray[np.int32],
    weights: NDArray[np.float32],
    cu_seqlens: NDArray[np.int32],
    dropped: NDArray[np.int32],
) -> Rows:
    lengths = np.diff(cu_seqlens)
    weights = np.where(np.isnan(weights), np.float32(np.inf), weights)
    kept = np.flatnonzero((weights > 0) & ~np.isin(ids, dropped))
    rows = np.repeat(np.arange(len(lengths)), lengths)[kept]
    # Text and id as one number: equal numbers are the repeats of an id within a text.
    keys = (rows << 32) | ids[kept].astype(np.int64)
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    best = np.zeros(len(first), np.float32)
    np.maximum.at(best, group, weights[kept])
    order = np.argsort(first)
    indptr = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(np.bincount(rows[first], minlength=len(lengths)), out=indptr[1:])
    return indptr, ids[kept[first[order]]], best[order]


def sparse_csr(
    ids: torch.Tensor,
    weights: torch.Tensor,
    cu_seqlens: torch.Tensor,
    texts: torch.Tensor,
    dropped: Sequence[int],
    *,
    sort: bool = False,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `sparse_rows`, where the tokens are: on a GPU, which the host does not wait for.

    Args:
        ids: int32 [T], as all tensors here on one device.
        weights: fp32 [T]; what is not > 0 is left out. A NaN counts as infinity, so that no row
            hides it.
        cu_seqlens: int32 [N + 1]; tokens from cu_seqlens[N] on belong to no text.
        texts: int32 [T], index of each token's text.
        dropped: a few ids left out. The GPU kernel is compiled for them.
        sort: order rows by id instead.
        out: int32 [N + 1 + 2T] to write into; a new tensor if None.

    Returns:
        `csr_views` of `out`: indptr int32 [N + 1], indices int32 [T] and values fp32 [T], of which
        the first indptr[N] are set.

    That the offsets ascend from 0 to at most T and the texts fit them is the caller's promise. On
    a GPU a broken one gives wrong rows, but no access outside of the tensors.
    Values are exact. Time grows with Σ length².

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape or device.
    """
    (total,) = checks.tensor("ids", ids, 1, (torch.int32,)).shape
    checks.shape("weights", checks.tensor("weights", weights, 1, (torch.float32,)), (total,))
    checks.shape("texts", checks.tensor("texts", texts, 1, (torch.int32,)), (total,))
    checks.tensor("cu_seqlens", cu_seqlens, 1, (torch.int32,))
    if len(cu_seqlens) == 0:
        raise ValueError("cu_seqlens: shape [N + 1] was expected, got [0]")
    if isinstance(dropped, torch.Tensor):  # to read it would be to wait for it
        raise TypeError("dropped: a sequence of ints was expected, got Tensor")
    n_texts = len(cu_seqlens) - 1
    if out is None:
        out = ids.new_empty(csr_entries(total, n_texts))
    entries = (csr_entries(total, n_texts),)
    checks.shape("out", checks.tensor("out", out, 1, (torch.int32,)), entries)
    for name, given in (
        ("weights", weights), ("cu_seqlens", cu_seqlens), ("texts", texts), ("out", out)
    ):  # fmt: skip
        checks.device(name, given, ids)

    drop = tuple(sorted({operator.index(i) for i in dropped}))
    given = (ids, weights, cu_seqlens, texts, out)
    if dispatch.takes("sparse_csr", *given, unsupported=dispatch.unsupported(*given)):
        from .gpu.sparse import launch_sparse_csr

        launch_sparse_csr(ids, weights, cu_seqlens, texts, drop, sort, out)
        return csr_views(out, total, n_texts)
    views = csr_views(out, total, n_texts)
    found = sparse_csr_ref(ids, weights, cu_seqlens, texts, drop, sort)
    for view, part in zip(views, found, strict=True):
        view.copy_(part)
    return views


def csr_entries(tokens: int, texts: int) -> int:
    """int32 entries of the buffer of `sparse_csr`: indptr [N + 1], indices [T], values [T]."""
    return texts + 1 + 2 * tokens


def csr_views(
    out: torch.Tensor, tokens: int, texts: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """indptr [N + 1], indices [T], values fp32 [T] in the int32 buffer of `sparse_csr`, or a copy.

    Raises:
        ValueError: a buffer of another size.
    """
    checks.shape("out", out, (csr_entries(tokens, texts),))
    indptr, indices, values = out.split([texts + 1, tokens, tokens])
    return indptr, indices, values.view(torch.float32)


def fill_dicts(
    dicts: Sequence[dict[str, Any]],
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    names: list[str],
    values: list[Any],
) -> None:
    """`dicts[i][names[indices[k]]] = values[k]` for the entries k of row i, in their order.

    Args:
        dicts: N of them; indptr, indices: CSR rows, int64 [N + 1] and int32 [nnz].
        names: key of each token id.
        values: nnz objects.

    Raises:
        ValueError: sizes that do not fit, or an index without a name.
    """
    if lib := native.library():
        lib.fill_dicts(list(dicts), indptr, indices, names, values)
        return
    ends = checks.offsets("indptr", indptr, len(values), np.int64).tolist()
    keys = [names[i] for i in indices.tolist()]
    for row, (a, b) in zip(dicts, pairwise(ends), strict=True):
        row.update(zip(keys[a:b], values[a:b], strict=True))


def lexical_scores(
    queries: Rows, docs: Rows, pairs: NDArray[np.int64] | None = None
) -> NDArray[np.float32]:
    """score(q, d) = Σ over the ids both rows have of their weights' product.

    Args:
        queries: CSR rows (indptr, indices, values) of n queries.
        docs: CSR rows of m documents.
        pairs: int64 [P, 2] of (query row, document row), or None for all of them.

    Returns:
        fp32 [n, m], or [P] with `pairs`; the cost follows the entries of the rows that take part.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, or a pair without its row.
    """
    q, d = _rows("queries", queries), _rows("docs", docs)
    if pairs is not None:
        pairs = checks.pairs(pairs, len(q[0]) - 1, len(d[0]) - 1)

    if lib := native.library():
        if pairs is None:
            return lib.lexical_scores(q, d, native.threads())
        return lib.lexical_pairs(q, d, pairs, native.threads())
    if pairs is None:
        return _lexical_numpy(q, d)
    scores = [_lexical_numpy(_one_row(q, i), _one_row(d, j))[0, 0] for i, j in pairs.tolist()]
    return np.array(scores, np.float32)


def _rows(name: str, rows: Rows) -> Rows:
    indices = checks.array(f"{name} indices", rows[1], np.int32)
    values = checks.array(f"{name} values", rows[2], np.float32)
    if len(indices) != len(values):
        raise ValueError(f"{name} values: [{len(indices)}] was expected, got [{len(values)}]")
    return checks.offsets(f"{name} indptr", rows[0], len(indices), np.int64), indices, values


def _one_row(rows: Rows, i: int) -> Rows:
    lo, hi = rows[0][i], rows[0][i + 1]
    return np.array([0, hi - lo]), rows[1][lo:hi], rows[2][lo:hi]


def _lexical_numpy(queries: Rows, docs: Rows) -> NDArray[np.float32]:
    """All pairs: documents as a dense matrix over the queries' ids, one column per id."""
    q_ptr, q_ids, q_values = queries
    d_ptr, d_ids, d_values = docs
    out = np.zeros((len(q_ptr) - 1, len(d_ptr) - 1), np.float32)
    columns = np.unique(q_ids)
    if len(columns) == 0:
        return out
    place = np.minimum(np.searchsorted(columns, d_ids), len(columns) - 1)
    hits = np.flatnonzero(columns[place] == d_ids)
    dense = np.zeros((len(columns), len(d_ptr) - 1))
    d_rows = np.repeat(np.arange(len(d_ptr) - 1), np.diff(d_ptr))
    dense[place[hits], d_rows[hits]] = d_values[hits]
    for i, (lo, hi) in enumerate(pairwise(q_ptr)):
        out[i] = q_values[lo:hi] @ dense[np.searchsorted(columns, q_ids[lo:hi])]
    return out
