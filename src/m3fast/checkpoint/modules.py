"""The modules that sentence-transformers puts behind the pooling."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch import nn

from m3fast.checkpoint.tensors import Tensors, open_tensors

if TYPE_CHECKING:
    from m3fast.checkpoint.listing import Module

class Dense(nn.Module):
    """sentence-transformers' module of that name: activation(W x + b), perhaps + x or R x."""

    def __init__(
        self, linear: nn.Linear, activation: nn.Module, residual: nn.Module | None
    ) -> None:
        super().__init__()
        self.linear, self.activation, self.residual = linear, activation, residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.activation(self.linear(x))
        return y if self.residual is None else y + self.residual(x)


class Normalize(nn.Module):
    """L2 normalisation between two other modules."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(x, dim=-1)


def load_modules(
    listed: tuple[Module, ...], size: int, device: torch.device
) -> tuple[nn.Module, ...]:
    """The modules behind the pooling, whose vectors are `size` wide at first."""
    found: list[nn.Module] = []
    for module in listed:
        if module.kind == "Normalize":
            found.append(Normalize())
            continue
        with ExitStack() as stack, torch.device("meta"):
            tensors = open_tensors(module.folder, stack)

            def fill(
                part: nn.Module, name: str, *shape: int, tensors: Tensors = tensors
            ) -> nn.Module:
                taken = {"weight": tensors.take(f"{name}.weight", shape, device, torch.float32)}
                if getattr(part, "bias", None) is not None:
                    bias = tensors.take(f"{name}.bias", shape[:1], device, torch.float32)
                    taken["bias"] = bias
                part.load_state_dict(taken, assign=True)
                return part.requires_grad_(requires_grad=False)

            if module.kind == "LayerNorm":
                found.append(fill(nn.LayerNorm(size), "norm", size))
                continue
            out, residual = module.size or size, None
            linear = nn.Linear(size, out, bias=module.bias)
            fill(linear, "linear", out, size)
            if module.residual:
                residual = nn.Identity()
                if out != size:
                    residual = fill(nn.Linear(size, out, bias=False), "residual", out, size)
            found.append(Dense(linear, getattr(nn, module.activation)(), residual))
            size = out
    return tuple(module.eval() for module in found)
