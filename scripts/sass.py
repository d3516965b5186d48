"""`make sass`: registers, spills, shared memory and tensor-core instructions of every kernel."""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from launch import driver, machinecode, shipped

COLUMNS = ("kernel", "sm", "warps", "stages", "registers", "spills", "shared KiB", "HGMMA", "HMMA",
           "TMA")  # fmt: skip


def rows(place: tuple[int, int]) -> list[list[str]]:
    """Of the kernels that a case, (arch, its number), launches."""
    arch, i = place
    found: list[list[str]] = []
    for name, report in machinecode.launch(shipped.cases(arch)[i], arch).items():
        options = report.kernel.metadata
        counts = [report.operations[name] for name in ("HGMMA", "HMMA", "UTMALDG")]
        facts = [arch, options.num_warps, options.num_stages, report.registers, report.spills,
                 f"{report.shared / 1024:.1f}", *counts]  # fmt: skip
        found.append([name, *map(str, facts)])
    return found


def main() -> None:
    places = [(arch, i) for arch in driver.ARCHS for i in range(len(shipped.cases(arch)))]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        table = [list(COLUMNS)] + [row for found in pool.map(rows, places) for row in found]
    widths = [max(len(r[c]) for r in table) for c in range(len(COLUMNS))]
    for r in table:
        first, *rest = (v.ljust(w) if c == 0 else v.rjust(w)
                        for c, (v, w) in enumerate(zip(r, widths, strict=True)))  # fmt: skip
        print("  ".join((first, *rest)))


if __name__ == "__main__":
    main()
