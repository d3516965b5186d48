"""`make sass`: registers, spills, shared memory and tensor-core instructions of every kernel."""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from sass import compiling, shipped

COLUMNS = ("kernel", "sm", "warps", "stages", "registers", "spills", "shared KiB", "HGMMA", "HMMA",
           "TMA")  # fmt: skip


def row(case: tuple[int, int]) -> list[str]:
    arch, i = case
    kernel = shipped.kernels(arch)[i]
    report = compiling.build(kernel, arch)
    shared = f"{report.shared / 1024:.1f}"
    counts = [report.operations[name] for name in ("HGMMA", "HMMA", "UTMALDG")]
    facts = [arch, kernel.warps, kernel.stages, report.registers, report.spills, shared, *counts]
    return [kernel.name, *map(str, facts)]


def main() -> None:
    cases = [(arch, i) for arch in (80, 90) for i in range(len(shipped.kernels(arch)))]
    with ProcessPoolExecutor() as pool:
        rows = [list(COLUMNS), *pool.map(row, cases)]
    widths = [max(len(r[c]) for r in rows) for c in range(len(COLUMNS))]
    for r in rows:
        first, *rest = (v.ljust(w) if c == 0 else v.rjust(w)
                        for c, (v, w) in enumerate(zip(r, widths, strict=True)))  # fmt: skip
        print("  ".join((first, *rest)))


if __name__ == "__main__":
    main()
