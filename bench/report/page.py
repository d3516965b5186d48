"""docs/bench/<device>.md: every row and peer of a device, its plots, what stands behind them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from bench.core.paths import ROOT
from bench.report import plots
from bench.report.table import HEADER, Record, cells, current, grid, notes

PAGES = ROOT / "docs" / "bench"


def page(
    records: list[Record], stem: str, tests: Collection[str] | None = None,
    kernels: Sequence[Record] = (),
) -> str:  # fmt: skip
    """The whole page; `kernels` are what `bench.gpu.kernels` recorded, oldest first."""
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
    pictures = plots.names(rows, stem)
    lines = [
        f"# {newest['device']}, {newest['threads']} threads",
        "",
        "Written by `make report` from `bench/results/`. Medians; a ratio is the peer's time over "
        "m3fast's, round by round. An aim is a goal that we set a row; missing it fails nothing. "
        "The limit is what the machine's fastest matrix products and passes over memory allow.",
        "",
        *(line for name, alt in pictures.items() for line in (f"![{alt}]({name})", "")),
        *grid(HEADER, [line for row in timed for line in cells(row)]),
        "",
        *(f"- *{row[0]['row']}*: {notes(row)}." for row in [*timed, *waiting]),
        "",
        *([f"Measured at {', '.join(commits)}; {versions}.", ""] if timed else []),
        *_kernels(kernels),
    ]
    return "\n".join(lines)


def _kernels(records: Sequence[Record]) -> list[str]:
    """The last table of kernels for each kind of batch."""
    newest = {record["kernels"]: record for record in records}
    lines = ["## Kernels by share"] if newest else []
    for its in newest.values():
        at = f"At `{its['commit'][:9]}` ({its['run'][:10]}), {its['shape']}, {its['dtype']}:"
        lines += ["", at, "", "```", *its["words"].splitlines(), "```"]
    return [*lines, ""] if lines else []
