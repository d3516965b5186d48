"""What is known of the machine code that each Triton version makes.

Triton brings LLVM and ptxas, so registers differ from version to version though no kernel does.
Where ptxas can fit one more block on a multiprocessor by giving up a few registers, it keeps
addresses in local memory. An entry says how many instructions load or store there; more is an
error, and so is any in a kernel without an entry. Within an inner loop there is none in any
version: those of MaxSim store before all loops and load once for each 32 or 64 query tokens of a
pair, those of attention store before a tile's loop over keys and load after it.

Clean in 3.8 and 3.9 too are the kernels of MaxSim with 32-bit rows and tokens, but then those of
8-bit documents take 180 to 200 registers: 2 blocks to a multiprocessor instead of 3.
"""

from __future__ import annotations

import triton

_SINCE_3_8 = {
    (80, "maxsim pairs fp16·fp16 128x64 d 1024"): 12,
    (80, "maxsim pairs i8·fp16 128x64 d 1024"): 16,
    (80, "maxsim pairs i8·bf16 128x64 d 1024"): 16,
    (80, "maxsim pairs fp32·fp32 32x32 d 1024"): 2,
}
# (arch, kernel): instructions on local memory
SPILLS: dict[str, dict[tuple[int, str], int]] = {
    "3.6": {},
    "3.7": {
        (80, "maxsim pairs fp16·fp16 128x32 d 1024"): 2,
        (80, "maxsim pairs fp16·fp16 128x64 d 1024"): 2,
        (80, "maxsim pairs bf16·bf16 128x32 d 1024"): 2,
    },
    "3.8": _SINCE_3_8,
    "3.9": _SINCE_3_8 | {(80, "attention fp16 D128 128"): 2, (80, "attention bf16 D128 128"): 2},
}
VERSION = ".".join(triton.__version__.split(".")[:2])


def spills(arch: int, name: str) -> int | None:
    """How many local-memory instructions a kernel may have; None: no one knows this version."""
    known = SPILLS.get(VERSION)
    return None if known is None else known.get((arch, name), 0)
