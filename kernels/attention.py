"""softmax(Q·Kᵀ·scale)·V over the texts of a packed batch."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from . import checks, dispatch, native, reference, tuning

if TYPE_CHECKING:
    from .gpu.attention import AttentionConfig

HEAD_SIZES = (16, 32, 64, 128)  # of the GPU kernel


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """How a batch is cut for the GPU kernel: made once, used by every layer.

    Attributes:
        tiles: int32 [n, 4] on the device, `attention_tiles` with `short` and `rows` of the
            batch's `attention_config`; tiles of 0 rows may follow.
        texts: int32 [T] on the device, index of each token's text.
        longest: tokens of the longest text, or a greater number: it picks the length class.
    """

    tiles: torch.Tensor
    texts: torch.Tensor
    longest: int


def attention_class(longest: int) -> str:
    """The length class of a batch: "32", "64", "128" or "longer"; each has tiles of its own."""
    return next((str(n) for n in (32, 64, 128) if longest <= n), "longer")


def attention_config(
    dim: int, dtype: torch.dtype, longest: int, device: torch.device
) -> AttentionConfig:
    """The kernel's tiles for batches whose longest text has `longest` tokens; needs triton."""
    return _config(dim, dtype, attention_class(longest), device)


@functools.cache
def _config(dim: int, dtype: torch.dtype, longest: str, device: torch.device) -> AttentionConfig:
    from .gpu.attention import default_config

    key = {"dtype": str(dtype), "dim": str(dim), "longest": longest}
    default = default_config(dispatch.arch(device), dtype, dim, longest)
    return tuning.tuned("attention", key, default, device)


def attention_tiles(cu_seqlens: NDArray[np.int32], short: int, rows: int) -> NDArray[np.int32]:
    """Row blocks of packed texts with the keys they look at, the longest first.

    A text of more than `short` tokens gives blocks of up to `rows`, each with all its keys. Others
    share a block with their neighbours while it has no more than `short`. Empty ones give none.

    Returns:
        int32 [n, 4] of row_begin, row_count, key_begin, key_count; n <= N + T // max(rows, 1).

    Raises:
        ValueError: `short` below 1, or `rows` of 0 with a text of more than `short` tokens.
    """
    if short < 1:
        raise ValueError(f"short: expected at least 1, found {short}")
    longest = int(np.diff(cu_seqlens).max(initial=0))
    if rows < 1 and longest > short:
        raise ValueError(f"rows: expected at least 1 for {longest} tokens, found {rows}")
    if lib := native.library():
        return lib.attention_tiles(cu_seqlens, short, max(rows, 1))
    return reference.attention_tiles_ref(cu_seqlens.tolist(), short, rows).numpy()


def most_tiles(tokens: int, texts: int, short: int, rows: int) -> int:
    """No batch of so many tokens and texts has more `attention_tiles`.

    A longer text has one tile for each `rows` tokens that it goes beyond, and one as a short tile
    is one. Of these any two neighbours hold more than `short` tokens, and each has a text.
    """
    return (tokens // rows if rows else 0) + min(texts, 2 * (tokens // (short + 1)) + 1)


def attention_plan(
    cu_seqlens: NDArray[np.int32],
    longest: int,
    dim: int,
    dtype: torch.dtype,
    device: torch.device,
) -> AttentionPlan:
    """The plan of a batch whose offsets int32 [N + 1] are on the host.

    Raises:
        TypeError: offsets of another type.
        ValueError: offsets that do not ascend from 0, or a longer text than `longest`.
    """
    total = int(cu_seqlens[-1]) if len(cu_seqlens) else 0
    lengths = np.diff(checks.offsets("cu_seqlens", cu_seqlens, total, np.int32))
    if (found := int(lengths.max(initial=0))) > longest:
        raise ValueError(f"longest: expected at least {found} from cu_seqlens, found {longest}")
    config = attention_config(dim, dtype, longest, device)
    tiles = torch.from_numpy(attention_tiles(cu_seqlens, config.short, config.rows))
    texts = torch.from_numpy(np.repeat(np.arange(len(lengths), dtype=np.int32), lengths))
    return AttentionPlan(tiles.to(device), texts.to(device), longest)


def varlen_attention(
    qkv: torch.Tensor,
    cu_seqlens: torch.Tensor | NDArray[np.int32],
    max_seqlen: int,
    scale: float | None = None,
    *,
    out: torch.Tensor | None = None,
    plan: AttentionPlan | None = None,
    early: bool = False,
) -> torch.Tensor:
    """out[i] = softmax(Q[i]·K[i]ᵀ·scale)·V[i] for each text i and head, in both directions.

    Args:
        qkv: [T, 3, H, D], queries, keys and values as one linear layer leaves them.
        cu_seqlens: int32 [N + 1] on the CPU, text i owns tokens cu_seqlens[i]:cu_seqlens[i + 1].
        max_seqlen: length of the longest text, in tokens.
        scale: factor of the products, 1/√D if None.
        out: [T, H·D] to write into; a new tensor if None.
        plan: the batch's plan, made if None. Where the GPU kernel runs, it stands in for
            `cu_seqlens` and `max_seqlen`, which are not read, and what it holds is trusted. Tokens
            that no tile names get no result.
        early: as for `linear`, of the plan.

    Returns:
        [T, H·D] in the dtype of `qkv`; sums are kept in fp32.

    The GPU kernel is flash attention (Dao, arXiv 2307.08691), for D of 16, 32, 64 or 128. Weights
    are rounded to the dtype of `qkv` before their sum divides.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape, or offsets that do not fit T or max_seqlen.
    """
    checks.tensor("qkv", qkv, 4, checks.FLOATS)
    tokens, three, heads, dim = qkv.shape
    if three != 3 or heads == 0 or dim == 0:
        raise ValueError(f"qkv: expected shape [T, 3, H, D], found {list(qkv.shape)}")
    scale = 1 / math.sqrt(dim) if scale is None else float(scale)

    if out is not None:
        checks.output(out, (tokens, heads * dim), qkv)

    unsupported = _unsupported(qkv, scale, out)
    if dispatch.takes("varlen_attention", qkv, out, unsupported=unsupported):
        from .gpu.attention import launch_attention

        if plan is None:
            ends = _offsets(cu_seqlens, tokens, max_seqlen)
            plan = attention_plan(ends, max_seqlen, dim, qkv.dtype, qkv.device)
        else:
            _check_plan(plan, tokens, qkv.device)
        out = qkv.new_empty(tokens, heads * dim) if out is None else out
        config = attention_config(dim, qkv.dtype, plan.longest, qkv.device)
        launch_attention(qkv, plan.tiles, plan.texts, scale, out, config, early)
        return out
    if lib := native.library_for(qkv, out):
        ends = checks.array("cu_seqlens", cu_seqlens, np.int32)
        out = qkv.new_empty(tokens, heads * dim) if out is None else out
        lib.attention(qkv, ends, max_seqlen, scale, out, native.threads())
        return out
    ends = _offsets(cu_seqlens, tokens, max_seqlen)
    result = _grouped_sdpa(qkv, ends, np.diff(ends), scale)
    return result if out is None else out.copy_(result)


def _offsets(cu_seqlens: object, tokens: int, max_seqlen: int) -> NDArray[np.int32]:
    ends = checks.offsets("cu_seqlens", cu_seqlens, tokens, np.int32)
    longest = int(np.diff(ends).max(initial=0))
    if max_seqlen != longest:
        raise ValueError(f"max_seqlen: expected {longest} from cu_seqlens, found {max_seqlen}")
    return ends


def _unsupported(qkv: torch.Tensor, scale: float, out: torch.Tensor | None) -> str:
    """Why the GPU kernel does not take these, or ""."""
    _, _, heads, dim = qkv.shape
    if qkv.dtype == torch.float64:
        return "it has no float64"
    if dim not in HEAD_SIZES:
        return f"expected head size 16, 32, 64 or 128, found {dim}"
    if heads * dim > 2**22:  # a tile's offsets are 32 bits wide
        return f"expected a width of at most {2**22}, found {heads * dim}"
    if not qkv.is_contiguous() or (out is not None and not out.is_contiguous()):
        return "qkv or out is strided"
    return "" if 0 <= scale < math.inf else f"expected a finite scale >= 0, found {scale}"


def _check_plan(plan: AttentionPlan, tokens: int, device: torch.device) -> None:
    for name, tensor, shape in (
        ("plan.tiles", plan.tiles, (len(plan.tiles), 4)),
        ("plan.texts", plan.texts, (tokens,)),
    ):
        checks.tensor(name, tensor, len(shape), (torch.int32,))
        checks.shape(name, tensor, shape)
        if tensor.device != device or not tensor.is_contiguous():
            raise ValueError(
                f"{name}: expected a contiguous tensor on {device}, "
                f"found strides {tensor.stride()} on {tensor.device}"
            )


def _grouped_sdpa(
    qkv: torch.Tensor, ends: NDArray[np.int32], lengths: NDArray[np.int32], scale: float
) -> torch.Tensor:
    """The same by torch alone, on any device: one dense call per group of equal lengths."""
    _, _, heads, dim = qkv.shape
    rows, parts = [np.empty(0, np.int64)], [qkv.new_empty(0, heads * dim)]
    for length in np.unique(lengths[lengths > 0]):
        starts = ends[:-1][lengths == length].astype(np.int64)
        index = (starts[:, None] + np.arange(length)).reshape(-1)
        taken = qkv[torch.from_numpy(index).to(qkv.device)]
        q, k, v = taken.view(len(starts), int(length), 3, heads, dim).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, scale=scale)
        rows.append(index)
        parts.append(out.transpose(1, 2).reshape(-1, heads * dim))
    # Every token belongs to exactly one group, so sorting by row puts all of them back.
    order = np.argsort(np.concatenate(rows), kind="stable")
    return torch.cat(parts)[torch.from_numpy(order).to(qkv.device)]
