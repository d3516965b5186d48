"""Kernels that begin before the kernel ahead of them has ended (programmatic dependent launch).

With few tokens a kernel takes two microseconds, and starting it half of one. Launched with
`launch_pdl`, its programs start as soon as those of the kernel ahead have all begun, do what does
not depend on them (fetch weights), then wait until it is done. Every kernel that is launched so
must `wait` before it reads or writes an activation.
"""

# pyright: basic, reportCallIssue=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .. import dispatch

FEW = 64  # tokens: beyond, kernels are long enough to hide their launches


def overlap(tokens: int, device: torch.device) -> dict[str, bool]:
    """How a kernel over so many tokens is launched: keywords of its launch, PDL among them."""
    if tokens <= FEW and dispatch.arch(device) >= 90:
        return {"PDL": True, "launch_pdl": True}
    return {"PDL": False}


@triton.jit
def begin(PDL: tl.constexpr):
    """Let the kernel behind this one start."""
    if PDL:
        gdc_launch_dependents()


@triton.jit
def wait(PDL: tl.constexpr):
    """What the kernels ahead have written is there from here on."""
    if PDL:
        gdc_wait()
