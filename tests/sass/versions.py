"""What is known of the machine code that each Triton version makes.

Triton brings LLVM and ptxas, so registers differ from version to version though no kernel does.
Where ptxas gives up a register to fit one more block on a multiprocessor, it keeps a value or two
in local memory. An entry says how many instructions load or store there; more is an error, and so
is any in a kernel without an entry.
"""

from __future__ import annotations

import triton

# (arch, kernel): instructions on local memory
SPILLS: dict[str, dict[tuple[int, str], int]] = {
    "3.6": {},
    # The address of a query token's maximum in shared memory: stored before all loops, loaded once
    # for each 32 or 64 query tokens. ptxas stops at the 128 registers of four blocks, or the 168
    # of three. Narrower integers in the kernel mend one tile and not the other.
    "3.7": {
        (80, "maxsim pairs fp16·fp16 128x32 d 1024"): 2,
        (80, "maxsim pairs fp16·fp16 128x64 d 1024"): 2,
        (80, "maxsim pairs bf16·bf16 128x32 d 1024"): 2,
    },
}
VERSION = ".".join(triton.__version__.split(".")[:2])


def spills(arch: int, name: str) -> int | None:
    """How many local-memory instructions a kernel may have; None: no one knows this version."""
    known = SPILLS.get(VERSION)
    return None if known is None else known.get((arch, name), 0)
