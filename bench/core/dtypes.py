"""The dtypes of rows, by the short names in their titles, and how far their results may differ.

int8 is what multiplies: weights with a scale per output channel, activations quantised in every
call. A result there is no rounding away from fp32's, so it is held to a cosine, LEAST_COSINE, and
the cosine that it has stands in its row.
"""

from __future__ import annotations

from functools import cache

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
NAMES = {"fp32": "float32", "bf16": "bfloat16", "int8": "int8"}
# Vectors have length 1 and token weights are near 1; fp32 sums in another order differ by 1e-6.
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}
# Of each text's vectors with fp32's: below it a candidate is wrong, such as by sums that saturate.
# After 24 random layers ONNX Runtime has 0.998 and OpenVINO 0.990.
LEAST_COSINE = 0.95
INT8_GAP = 0.5  # of token weights; there it is up to 0.25
NO_BF16 = "awaits a CPU with AVX512_BF16 or AMX"


@cache
def no_int8() -> str:
    """Why m3fast has no int8 on this CPU, or ""."""
    from m3fast import Engine
    from m3fast.errors import M3FastError

    try:
        Engine.from_pretrained("m3fast-tiny", device="cpu", dtype="int8").close()
    except M3FastError as error:
        return f"m3fast has no int8 here: {error}"
    return ""
