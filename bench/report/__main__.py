"""Results files -> README's table, docs/bench/ and its plots: `make report`, no figure typed.

Of each test in bench/ the rows of its last whole run count, and what ran after it, so that no row
of an older name lingers; 24-layer rows, which only --suite full has, keep their last record.
`--check` looks for what became slower. `--add FILE` takes over what was recorded elsewhere, such as
on a rented GPU, into the results of each device.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.core import record
from bench.core.paths import RESULTS, ROOT
from bench.report import plots, regress
from bench.report.page import PAGES, page
from bench.report.readme import BEGIN, END, markdown, rewrite
from bench.report.table import current, read, read_kernels, read_results


def add(file: Path, results: Path = RESULTS) -> dict[Path, int]:
    """Append a file's records to those of their devices; how many were not there yet.

    Tables of kernels have a file of their own. Smoke tests' records stay out.
    """
    counts: dict[Path, int] = {}
    for its in read(file):
        if its.get("scale") == "smoke" or not {"row", "kernels"} & its.keys():
            continue
        folder = results if "row" in its else results / "kernels"
        folder.mkdir(exist_ok=True)
        target = folder / record.file_of(its["device"]).name
        known = read(target) if target.exists() else []
        counts.setdefault(target, 0)
        if its not in known:
            record.append([its], its["device"], target)
            counts[target] += 1
    return counts


def check(results: Path = RESULTS) -> bool:
    """Print what became slower on each device; whether anything did."""
    slower = False
    for stem, records in read_results(results).items():
        found = regress.check(records)
        print(f"{stem}: " + "\n  ".join(found.lines()))
        slower |= bool(found.slower)
    return slower


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Rewrite the README's benchmark table and plots.")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--plots", type=Path, default=PAGES)
    parser.add_argument("--check", action="store_true", help="exit 1 if a row became slower since "
                        "the last earlier commit on its device; rewrites nothing")  # fmt: skip
    parser.add_argument("--add", type=Path, metavar="FILE", help="its rows first into the results")
    options = parser.parse_args(arguments)
    if options.add and not options.add.is_file():
        parser.error(f"--add: expected a file of records, found {options.add}")
    if options.add:
        for added, count in add(options.add, options.results).items():
            print(f"{added}: {count} records added")
    if options.check:
        return int(check(options.results))
    for stem, records in read_results(options.results).items():
        options.plots.mkdir(parents=True, exist_ok=True)
        text = page(records, stem, kernels=read_kernels(options.results, stem))
        (options.plots / f"{stem}.md").write_text(text, encoding="utf-8")
        for drawn in plots.draw(current(records), stem, options.plots):
            print(f"{drawn}: drawn")
    old = options.readme.read_text(encoding="utf-8") if options.readme.exists() else ""
    block = markdown(options.results)
    new = rewrite(old, block)
    if new is None:
        print(block)
        print(f"{options.readme}: no {BEGIN} … {END} to fill", file=sys.stderr)
    elif new != old:
        options.readme.write_text(new, encoding="utf-8")
        print(f"{options.readme}: rewritten")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
