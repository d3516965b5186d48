"""The linear layer: our own product over packed weights on a CPU and of few rows on a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch

from . import checks, dispatch, native
from .int8 import Int8Weight, linear_int8, quantize_rows, unpack_int8

HALVES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight in the order in which the CPU's kernel reads it, made by `pack_weight`.

    Attributes:
        data: [⌈N / panel⌉·panel·K], panels of `panel` outputs, rows past N being 0.
        shape: (N, K) of the weight.
        panel: outputs of a panel; it differs between instruction sets.
    """

    data: torch.Tensor
    shape: tuple[int, int]
    panel: int

    @property
    def dtype(self) -> torch.dtype:
        return self.data.dtype


Weight: TypeAlias = torch.Tensor | PackedWeight | Int8Weight


def pack_weight(weight: torch.Tensor) -> Weight:
    """A copy of `weight` [N, K] for the CPU's own kernel, or `weight` where torch's is used.

    The kernel takes fp32 with AVX2 or AVX-512, and bf16 with AVX512_BF16 unless there is AMX, which
    multiplies far more in a cycle and which torch knows how to use. docs/adr/0008 has the figures.

    Raises:
        TypeError: not a tensor of floats.
        ValueError: not two dimensions.
    """
    checks.tensor("weight", weight, 2, checks.FLOATS)
    if not has_kernel(weight):
        return weight
    lib = native.library()
    (outs, depth), panel = weight.shape, lib.linear_panel()
    packed = weight.new_empty(-(-outs // panel) * panel * depth)
    lib.pack_weight(weight.detach(), packed, native.threads())
    return PackedWeight(packed, (outs, depth), panel)


def unpack_weight(weight: Weight) -> torch.Tensor:
    """The weight [N, K] as it was before `pack_weight`; of one in int8 what is multiplied."""
    if isinstance(weight, Int8Weight):
        return unpack_int8(weight)
    if not isinstance(weight, PackedWeight):
        return weight
    pair = 4 // weight.data.element_size()  # neighbours in depth that lie side by side
    outs, depth = weight.shape
    parts = weight.data.view(-1, depth // pair, weight.panel, pair)
    return parts.transpose(1, 2).reshape(-1, depth)[:outs]


def has_kernel(weight: torch.Tensor) -> bool:
    """Whether `pack_weight` packs such a weight on this machine."""
    lib = native.library_for(weight.detach())
    if not lib or lib.cpu_path() == "portable" or not weight.numel():
        return False
    if weight.dtype == torch.float32:
        return True
    amx = "amx" in native.bf16_instructions()
    return lib.multiplies_bf16() and not amx and weight.shape[1] % 2 == 0


def linear(
    x: torch.Tensor,
    weight: Weight,
    bias: torch.Tensor | None = None,
    *,
    gelu: bool = False,
    out: torch.Tensor | None = None,
    early: bool = False,
) -> torch.Tensor:
    """y = x·Wᵀ + b, or gelu of that.

    Args:
        x: [T, K].
        weight: [N, K], the same dtype, or that packed; or in int8, and then x is quantised too.
        bias: [N], in the dtype of `x` or fp32; None for no bias.
        gelu: y/2·(1 + erf(y/√2)) of the result, where the product `ends_with_gelu` only: see
            `kernels.gelu.linear_gelu`.
        out: [T, N] to write into; a new tensor if None.
        early: nothing that the stream still holds writes the parameters. With few rows a GPU's
            kernel may then begin before the one ahead has ended.

    Returns:
        [T, N] in the dtype of `x`. A packed weight sums in fp32, in chains of 256 (bf16: 512). On a
        GPU up to 64 rows in half precision have a kernel of their own where the call is `early`;
        torch multiplies the rest.

    Raises:
        TypeError: a wrong type or dtype, or a gradient through a packed weight.
        ValueError: a wrong shape.
    """
    checks.tensor("x", x, 2, checks.FLOATS)
    packed = isinstance(weight, PackedWeight)
    if isinstance(weight, Int8Weight):
        if gelu:
            raise TypeError(
                "gelu: expected another weight, found one in int8: see linear_gelu_int8"
            )
        out = x.new_empty(len(x), weight.shape[0]) if out is None else out
        return linear_int8(quantize_rows(x), weight, bias, out=out)
    if not packed:
        checks.tensor("weight", weight, 2, (x.dtype,))
    elif weight.dtype != x.dtype:
        raise TypeError(f"weight: expected dtype {x.dtype}, found {weight.dtype}")
    rows, depth = x.shape
    outs = weight.shape[0]
    if weight.shape[1] != depth:
        raise ValueError(f"weight: expected shape [{outs}, {depth}], found {list(weight.shape)}")
    if bias is not None:
        checks.parameter("bias", bias, outs, x)
    if out is not None:
        checks.output(out, (rows, outs), x)
    if packed:
        return _packed(x, weight, bias, gelu, out)
    if early and few_rows("linear", x, weight, bias, out):
        from .gpu.linear import launch_linear

        out = x.new_empty(rows, outs) if out is None else out
        launch_linear(x, weight, bias, out, gelu)
        return out
    if gelu and bias is not None and ends_with_gelu(x, weight, bias, out, early=early):
        return torch._addmm_activation(bias.to(x.dtype), x, weight.t(), use_gelu=True, out=out)
    if gelu:
        raise TypeError("gelu: expected a packed weight, or bf16 on a GPU, found neither")
    if bias is None:
        return torch.mm(x, weight.t(), out=out)
    return torch.addmm(bias.to(x.dtype), x, weight.t(), out=out)


def few_rows(op: str, x: torch.Tensor, weight: Weight, *others: torch.Tensor | None) -> bool:
    """Whether `op`, called early, takes the GPU's kernel for few rows: half precision, round sizes.

    From compute capability 9.0 on, where its launch overlaps: else cuBLAS is ahead.
    """
    return (
        (dispatch.interpreter or (x.is_cuda and dispatch.arch(x.device) >= 90))
        and isinstance(weight, torch.Tensor)
        and 0 < len(x) <= dispatch.FEW
        and x.dtype == weight.dtype
        and x.dtype in HALVES
        and all(size % 64 == 0 for size in weight.shape)
        and weight.data_ptr() % 16 == 0  # of what is fetched ahead
        and not dispatch.unsupported(x, weight, *others)
        and dispatch.takes(op, x, weight, *others)
    )


def ends_with_gelu(
    x: torch.Tensor, weight: Weight, *others: torch.Tensor | None, early: bool
) -> bool:
    """Whether `linear` can compute GELU in the same pass."""
    if isinstance(weight, PackedWeight) or (early and few_rows("linear", x, weight, *others)):
        return True
    plain = x.is_cuda and x.dtype == torch.bfloat16
    return plain and not dispatch.wants_gradient(x, weight, *others)


def _packed(
    x: torch.Tensor,
    weight: PackedWeight,
    bias: torch.Tensor | None,
    gelu: bool,
    out: torch.Tensor | None,
) -> torch.Tensor:
    checks.device("x", x, weight.data)
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        raise TypeError("weight: expected a tensor for a gradient, found a packed weight")
    rows, outs = x.shape[0], weight.shape[0]
    out = x.new_empty(rows, outs) if out is None else out
    if not out.is_contiguous():
        raise ValueError(f"out: expected contiguous rows, found strides {list(out.stride())}")
    x = x.contiguous()
    wide = None if bias is None else bias.float().contiguous()
    native.library().linear(x, weight.data, weight.panel, wide, gelu, out, native.threads())
    return out
