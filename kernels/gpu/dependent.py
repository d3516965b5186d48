"""Kernels that begin before the kernel ahead of them has ended (programmatic dependent launch).

With few tokens a kernel takes two microseconds, and starting it half of one. Launched with
`launch_pdl`, its programs start once all of the kernel ahead have called `begin` or ended. They
fetch parameters, then `wait` until the kernel ahead is done and its results are there.

A kernel that is launched so must `wait`, in every program, before it touches an activation. One
that fetches weights calls `begin` after that, others at their start: so two products are under way
at most. Products further ahead would push weights out of L2 before they are used: measured on an
H200 with `begin` first everywhere, where a layer took 38 µs, where the first ones took 22.
"""

# pyright: basic, reportCallIssue=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .. import dispatch


def overlap(tokens: int, device: torch.device, early: bool) -> dict[str, bool]:
    """How a kernel over so many tokens is launched: keywords of its launch, PDL among them.

    `early`: its parameters are not written by what the stream still holds.
    """
    if early and tokens <= dispatch.FEW and dispatch.arch(device) >= 90:
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
