"""Results files -> README's tables, docs/bench/ and its plots: `make report`, no figure typed.

Of each test in bench/ the rows of its last whole run count, and what ran after it, so that no row
of an older name lingers; 24-layer rows, which only --suite full has, keep their last record.
`--check` looks for what became slower. `--add FILE` takes over what was recorded elsewhere, such as
on a rented GPU, into the results of each device.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from bench.core.paths import RESULTS, ROOT
from bench.report import plots, regress
from bench.report.table import (
    HEADER,
    OURS,
    Record,
    aim,
    cells,
    current,
    figure,
    notes,
    ours_of,
    percent,
    ratio,
    read_results,
)
from bench.report.table import latest as latest
from bench.report.table import plain as plain
from bench.report.table import read as read

PLOTS = ROOT / "docs" / "bench"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
REST = "Every row and peer, sizes, samples, versions, what was not measured"
SHORT = ("Workload", "m3fast", "Ratio to peers", "Of limit")


def markdown(results: Path = RESULTS, tests: Collection[str] | None = None) -> str:
    """The README's block without its markers, empty where nothing is recorded."""
    found = sorted(read_results(results).items(), key=lambda its: max(r["run"] for r in its[1]))
    return "\n\n".join(_device(records, stem, tests) for stem, records in reversed(found))


def _device(records: list[Record], stem: str, tests: Collection[str] | None) -> str:
    """A short table, the plots, and where the rest is."""
    rows = current(records, tests)
    newest = max(records, key=lambda r: r["run"])
    short = {r.get("scale") for row in rows for r in row} & {"first", "quick"}
    pictures = [f"![{alt}](docs/bench/{name})" for name, alt in plots.names(rows, stem).items()]
    lines = [
        f"**{newest['device']}, {newest['threads']} threads{', short runs' if short else ''}**",
        "",
        *_table(SHORT, [_short(row) for row in _headlines([r for r in rows if cells(r)])]),
        *(line for picture in pictures for line in ("", picture)),
        "",
        f"[{REST}](docs/bench/{stem}.md)",
    ]
    return "\n".join(lines)


def page(records: list[Record], tests: Collection[str] | None = None) -> str:
    """docs/bench/<device>.md: every row and peer, and what stands behind the figures."""
    rows = current(records, tests)
    timed = [row for row in rows if cells(row)]
    waiting = [row for row in rows if not cells(row)]
    newest = max(records, key=lambda r: r["run"])
    commits = dict.fromkeys(
        f"`{r['commit'][:9]}`{' with local changes' if r['dirty'] else ''} ({r['run'][:10]})"
        for row in timed
        for r in row[:1]
    )
    versions = ", ".join(f"{name} {v}" for name, v in newest["versions"].items())
    lines = [
        f"# {newest['device']}, {newest['threads']} threads",
        "",
        "Written by `make report` from `bench/results/`. Medians; a ratio is the peer's time over "
        "m3fast's, round by round.",
        "",
        *_table(HEADER, [line for row in timed for line in cells(row)]),
        "",
        *(f"- *{row[0]['row']}*: {notes(row)}." for row in [*timed, *waiting]),
        "",
        *([f"Measured at {', '.join(commits)}; {versions}.", ""] if timed else []),
    ]
    return "\n".join(lines)


def _headlines(rows: list[list[Record]]) -> list[list[Record]]:
    """Rows with an aim, and the first of a suite that has none."""
    aimed = [any("aim" in r for r in row) for row in rows]
    suites = [row[0].get("suite", row[0]["row"]) for row in rows]
    covered = {suite for suite, has in zip(suites, aimed, strict=True) if has}
    chosen = []
    for row, has, suite in zip(rows, aimed, suites, strict=True):
        if has or suite not in covered:
            chosen.append(row)
            covered.add(suite)
    return chosen


def _short(row: list[Record]) -> list[str]:
    """One line for a row: workload, m3fast, ratios to those that have one, share of the limit."""
    ours = ours_of(row)
    shown = [
        (ratio(r) or figure(r)) + f" {r['candidate']}" + _said(r)
        for r in row
        if r["candidate"] != OURS and r["status"] != "skipped"
    ]
    figures = figure(ours) + _said(ours) if ours else ""
    return [row[0]["row"], figures, ", ".join(shown), percent((ours or {}).get("share"))]


def _said(record: Record) -> str:
    goal, met = aim(record)
    return f" (aim {goal}, {'met' if met == 'yes' else 'not met'})" if goal else ""


def _table(header: Sequence[str], lines: list[list[str]]) -> list[str]:
    """Markdown, without columns that are empty throughout."""
    used = [i for i in range(len(header)) if any(line[i] for line in lines)]
    rows = [header, ["---"] * len(header), *lines]
    return ["| " + " | ".join(row[i] for i in used) + " |" for row in rows]


def add(file: Path, results: Path = RESULTS) -> dict[Path, int]:
    """Append a file's records to those of their devices; how many were not there yet.

    Smoke tests' and what is no row of a benchmark stay out.
    """
    from bench.core import record

    counts: dict[Path, int] = {}
    for its in read(file):
        if "row" not in its or its.get("scale") == "smoke":
            continue
        target = results / record.file_of(its["device"]).name
        known = read(target) if target.exists() else []
        counts.setdefault(target, 0)
        if its not in known:
            record.append([its], its["device"], target)
            counts[target] += 1
    return counts


def rewrite(text: str, block: str) -> str | None:
    """`text` with the part between the markers replaced, or None without markers."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    inside = f"{block}\n" if block else ""
    return f"{head}{BEGIN}\n{inside}{END}{tail}" if begin and end else None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Rewrite the README's benchmark tables and plots.")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--plots", type=Path, default=PLOTS)
    parser.add_argument("--check", action="store_true", help="exit 1 if a row became slower since "
                        "the last earlier commit on its device; rewrites nothing")  # fmt: skip
    parser.add_argument("--add", type=Path, metavar="FILE", help="its rows first into the results")
    options = parser.parse_args(arguments)
    if options.add:
        for added, count in add(options.add, options.results).items():
            print(f"{added}: {count} records added")
    if options.check:
        slower = False
        for stem, records in read_results(options.results).items():
            found = regress.check(records)
            print(f"{stem}: " + "\n  ".join(found.lines()))
            slower |= bool(found.slower)
        return int(slower)
    old = options.readme.read_text(encoding="utf-8") if options.readme.exists() else ""
    block = markdown(options.results)
    new = rewrite(old, block)
    for stem, records in read_results(options.results).items():
        options.plots.mkdir(parents=True, exist_ok=True)
        (options.plots / f"{stem}.md").write_text(page(records), encoding="utf-8")
        for drawn in plots.draw(current(records), stem, options.plots):
            print(f"{drawn}: drawn")
    if new is None:
        print(block)
        print(f"{options.readme}: no {BEGIN} … {END} to fill", file=sys.stderr)
    elif new != old:
        options.readme.write_text(new, encoding="utf-8")
        print(f"{options.readme}: rewritten")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
