"""The dtypes of rows, by the short names in their titles, and how far their results may differ."""

from __future__ import annotations

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
NAMES = {"fp32": "float32", "bf16": "bfloat16"}
# Vectors have length 1 and token weights are near 1; fp32 sums in another order differ by 1e-6.
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}
NO_BF16 = "awaits a CPU with AVX512_BF16 or AMX"
