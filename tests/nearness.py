"""How near two results must be: of one dtype, or one in half precision to the exact one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from m3fast.types import Embeddings


def same(a: Embeddings, b: Embeddings, tolerance: float = 0.0) -> None:
    """Equal, and values within `tolerance`; of all three outputs."""
    assert a.dense is not None and b.dense is not None
    assert a.sparse is not None and b.sparse is not None
    assert a.colbert is not None and b.colbert is not None
    np.testing.assert_allclose(a.dense, b.dense, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(a.sparse.indptr, b.sparse.indptr)
    np.testing.assert_array_equal(a.sparse.indices, b.sparse.indices)
    np.testing.assert_allclose(a.sparse.values, b.sparse.values, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(a.colbert.offsets, b.colbert.offsets)
    np.testing.assert_allclose(a.colbert.values, b.colbert.values, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(a.n_tokens, b.n_tokens)
    np.testing.assert_array_equal(a.truncated, b.truncated)


def as_near(
    found: torch.Tensor,
    exact: torch.Tensor,
    plain: torch.Tensor,
    ends: Sequence[int] | None = None,
) -> None:
    """FlashAttention's rule: at most twice as far from the exact result as plain torch is.

    Beyond that the last rounding is allowed, half a unit in the place of the greatest value, which
    plain torch may be spared by luck. Text by text: a short text's values are larger than a long
    one's, and would hide its faults.

    Args:
        found, exact, plain: [T, ...]; `exact` float64 or float32, `plain` in the dtype of `found`.
        ends: text i owns rows ends[i]:ends[i + 1]; None for all rows as one.

    Raises:
        AssertionError: they are farther apart, or not finite.
    """
    assert found.shape == exact.shape == plain.shape, (found.shape, exact.shape, plain.shape)
    exact = exact.double()

    def greatest(x: torch.Tensor) -> torch.Tensor:
        return x.abs().flatten(1).amax(1).cpu()

    rows = [greatest(x) for x in (found.double() - exact, plain.double() - exact, exact)]
    eps = torch.finfo(found.dtype).eps
    for a, b in pairwise([0, len(found)] if ends is None else ends):
        if a < b:
            ours, torchs, size = (row[a:b].max().item() for row in rows)
            assert ours <= 2 * torchs + eps / 2 * size, (
                f"rows {a} to {b}: off by {ours:.3g}, plain torch by {torchs:.3g}, "
                f"the greatest value is {size:.3g}"
            )


def plain_attention(
    qkv: torch.Tensor, cu_seqlens: Sequence[int], scale: float | None = None
) -> torch.Tensor:
    """Plain torch in the dtype of qkv [T, 3, H, D]: softmax(Q·Kᵀ·scale)·V per text, [T, H·D]."""
    tokens, _, heads, dim = qkv.shape
    factor = dim**-0.5 if scale is None else scale
    out = qkv.new_empty(tokens, heads * dim)
    for a, b in pairwise(cu_seqlens):
        q, k, v = qkv[a:b].permute(1, 2, 0, 3)
        each = torch.softmax(q @ k.mT * factor, -1) @ v
        out[a:b] = each.transpose(0, 1).reshape(b - a, heads * dim)
    return out


def off(found: NDArray[Any], exact: NDArray[Any], axis: int | None = None) -> Any:
    """Root mean square of the difference: of all, or along one axis."""
    return np.sqrt(np.mean((found.astype(np.float64) - exact) ** 2, axis))


def lexical_weights(*results: Embeddings) -> list[NDArray[np.float32]]:
    """Weights [K, 1] of each, 0 where only others have one."""
    width = results[0].sparse.vocab_size
    rows = [(np.repeat(np.arange(len(x)), np.diff(x.sparse.indptr)), x.sparse) for x in results]
    keys = [row * width + sparse.indices for row, sparse in rows]
    places, found = np.unique(np.concatenate(keys)), []
    for key, (_, sparse) in zip(keys, rows, strict=True):
        found.append(np.zeros((len(places), 1), np.float32))
        found[-1][np.searchsorted(places, key), 0] = sparse.values
    return found


def as_rough(found: Embeddings, rough: Embeddings, exact: Embeddings) -> None:
    """`found`, in bf16, is as near to `exact` as `rough` is, in bf16 too and rounded elsewhere.

    Each output by the root mean square of all of it and by that of each row, which is set against
    the same row of `rough` or the typical one, whichever is farther off: one row may be near by
    luck. By greatest elements of each text, twice is exceeded over 24 layers in 2 of 3 runs.

    Raises:
        AssertionError: it is farther off, or the texts too much alike for a fault to show.
    """
    given = (found, rough, exact)
    for each in given[:2]:
        np.testing.assert_array_equal(each.colbert.offsets, exact.colbert.offsets)
    # Weights under which all texts become one vector give 9, those of the tests 17 or more.
    assert off(exact.dense, np.roll(exact.dense, 1, 0)) > 12 * off(rough.dense, exact.dense)
    lexical = lexical_weights(*given)
    assert (lexical[2] > 0).sum() >= len(lexical[2]) / 2 >= len(exact)
    # Between three CPU paths, 24 layers and 1500 pairs: at most 1.22, 1.05, 1.43 of all and 1.70,
    # 2.29, 6.10 of a row. Without one LayerNorm's bias colbert has 1.2 or more, of 4 layers 2.3.
    for name, most, most_of_row, (o, r, e) in (
        ("dense", 1.5, 3, [x.dense for x in given]),
        ("colbert", 1.25, 3, [x.colbert.values for x in given]),
        ("lexical weights", 2, 10, lexical),
    ):
        assert o.shape == e.shape and np.isfinite(o).all(), name
        ours, typical = off(o, e), off(r, e)
        assert ours <= most * typical, f"{name}: off by {ours:.3g}, the other by {typical:.3g}"
        rows = off(o, e, 1)
        ratios = rows / np.maximum(off(r, e, 1), typical)
        i = ratios.argmax()
        assert ratios[i] <= most_of_row, (
            f"{name}, row {i} of {len(rows)}: off by {rows[i]:.3g}, {ratios[i]:.3g} times the other"
        )


def near(expected: Embeddings, found: Embeddings, tolerance: float) -> None:
    """All within the tolerance; a lexical weight that near to 0 may be there or not."""
    np.testing.assert_allclose(found.dense, expected.dense, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(found.colbert.offsets, expected.colbert.offsets)
    np.testing.assert_allclose(
        found.colbert.values, expected.colbert.values, rtol=0, atol=tolerance
    )
    a, b = lexical_weights(expected, found)
    np.testing.assert_allclose(b, a, rtol=0, atol=tolerance)
