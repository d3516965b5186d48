"""The encoder's matrix products and nothing else: a limit that encoders are held against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bench.core import measure, roof
from bench.core.workloads import Shape

LINEARS = "bare linears"


def linear_ways(
    shape: Shape, tokens: int, dtype: torch.dtype, trial: bool = True
) -> dict[str, str]:
    """The fastest way of torch to each of a layer's four products over `tokens` rows."""
    random = torch.Generator().manual_seed(0)
    chosen: dict[str, str] = {}
    with torch.inference_mode():
        for name, (n, k) in roof.shapes(shape.hidden).items():
            x = roof.normal(tokens, k, dtype=dtype, generator=random)
            weight = roof.normal(n, k, dtype=dtype, generator=random)
            ways = roof.products(x, weight)
            chosen[name] = measure.fastest(ways, x, x) if trial else next(iter(ways))
    return chosen


class BareLinears:
    """The four GEMMs of every layer over `tokens` packed tokens, and nothing else.

    A limit, not a peer. Each product is computed the way that is fastest here: by torch.mm into a
    kept buffer (a fresh one of 40 MB would be page faults, not arithmetic), or by oneDNN.

    Attributes:
        ways: by product.
    """

    def __init__(
        self, shape: Shape, tokens: int, dtype: torch.dtype, trial: bool = True, batch: int = 4096
    ) -> None:
        self._count = -(-tokens // batch)
        rows = -(-tokens // self._count)
        self._shape, self._dtype, self._rows = shape, dtype, rows
        self.ways = linear_ways(shape, rows, dtype, trial)

    def __str__(self) -> str:
        named = sorted(set(self.ways.values()))
        if len(named) == 1:
            return f"bare linears by {named[0]}"
        return "bare linears by " + ", ".join(f"{way} ({n})" for n, way in self.ways.items())

    def make(self) -> Callable[[Any], None]:
        """The candidate."""
        random = torch.Generator().manual_seed(0)
        sizes = roof.shapes(self._shape.hidden)
        x = {
            k: roof.normal(self._rows, k, dtype=self._dtype, generator=random)
            for _, k in sizes.values()
        }
        steps = []
        with torch.inference_mode():
            for _ in range(self._shape.layers):
                for name, (n, k) in sizes.items():
                    weight = roof.normal(n, k, dtype=self._dtype, generator=random)
                    product = roof.products(x[k], weight)[self.ways[name]]
                    steps.append((product, x[k]))

        def run(_: Any) -> None:
            with torch.inference_mode():
                for _ in range(self._count):
                    for product, rows in steps:
                        product(rows)

        return run
