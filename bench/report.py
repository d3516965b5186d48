"""Results files -> the README's tables: `python -m bench.report`, and no figure typed by hand.

For each row the newest run that timed m3fast counts; a row that never ran is named with the reason.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
HEADER = ("Workload", "m3fast", "Peer", "Its figure", "Ratio", "Of limit", "Aim", "Met")
OURS = "m3fast"

Record = dict[str, Any]


def read(file: Path) -> list[Record]:
    """All records of one device, oldest first."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]


def latest(records: Iterable[Record]) -> list[list[Record]]:
    """Per row, in order of first appearance, the records of the run that counts."""
    rows: dict[str, dict[str, list[Record]]] = {}
    for record in records:
        rows.setdefault(record["row"], {}).setdefault(record["run"], []).append(record)
    chosen = []
    for runs in rows.values():
        ours = [r for r in runs.values() if any(x["candidate"] == OURS and "p50" in x for x in r)]
        chosen.append((ours or list(runs.values()))[-1])
    return chosen


def figure(record: Record) -> str:
    """p50 in the row's unit, or why there is none."""
    if "p50" not in record:
        return record["status"]
    p50, unit = record["p50"], record["unit"]
    if unit == "tokens/s":
        return f"{_digits(record['tokens'] / p50)} tokens/s"
    if unit == "TFLOP/s":
        return f"{_digits(record['work'] / p50 / 1e12)} TFLOP/s"
    if unit != "s":
        return f"{_digits(p50)} {unit}"
    factor, unit = (1, "s") if p50 >= 1 else (1e3, "ms") if p50 >= 1e-3 else (1e6, "µs")
    text = f"{_digits(p50 * factor)} {unit}"
    if "p99" in record:
        text += f" (p99 {_digits(record['p99'] * 1e3)} ms)"
    return text


def cells(records: list[Record]) -> list[list[str]]:
    """Table lines of one row: one per peer, or a single one where there is no peer."""
    ours = next((r for r in records if r["candidate"] == OURS and "p50" in r), None)
    if ours is None:
        return []
    limit = f"{100 * ours['share']:.0f} %" if "share" in ours else ""
    lines = []
    for peer in records:
        if peer["candidate"] == OURS:
            continue
        found = peer.get("ratio")
        share = peer.get("aim", "").endswith("%")
        shown = "" if found is None else f"{100 * found:.0f} %" if share else _times(found)
        lines.append([peer["candidate"], figure(peer), shown, limit, *_aim(peer)])
    if "aim" in ours or not lines:
        lines.insert(0, ["", "", "", limit, *_aim(ours)])
    return [[ours["row"], figure(ours), *line] for line in lines]


def notes(records: list[Record]) -> str:
    """What stands behind a row's figures: shape, tokens, padding, samples, the case's own note."""
    ours = next(r for r in records if r["candidate"] == OURS)
    parts = [ours["shape"]]
    if ours.get("tokens"):
        parts.append(f"{ours['tokens']:,} tokens")
    if ours.get("padding"):
        parts.append(f"padding ratio {ours['padding']:.2f}")
    counts = {r["candidate"]: str(r["samples"]) for r in records if "samples" in r}
    if len(set(counts.values())) == 1:
        counts = {"each": counts.popitem()[1]}
    parts.append("samples: " + ", ".join(f"{n} {name}" for name, n in counts.items()))
    reasons = [f"{r['candidate']}: {r['reason']}" for r in records if r.get("reason")]
    return "; ".join([*parts, *filter(None, [ours.get("note", "")]), *reasons])


def plain(lines: list[list[str]]) -> str:
    """The terminal's table, columns aligned, a workload named on its first line only."""
    shown = [[*line] for line in lines]
    for above, line in zip(lines, shown[1:], strict=False):
        if above[0] == line[0]:
            line[0] = line[1] = ""
    table = [list(HEADER), *shown]
    widths = [max(len(line[i]) for line in table) for i in range(len(HEADER))]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in table
    )


def markdown(results: Path = RESULTS) -> str:
    """The README's block without its markers, empty where nothing is recorded."""
    return "\n\n".join(_device(read(file)) for file in sorted(results.glob("*.jsonl")))


def _device(records: list[Record]) -> str:
    rows = latest(records)
    timed = [row for row in rows if cells(row)]
    newest = max(records, key=lambda r: r["run"])
    lines = [
        f"**{newest['device']}, {newest['threads']} threads**",
        "",
        *_table([line for row in timed for line in cells(row)]),
        "",
    ]
    lines += [f"- *{row[0]['row']}*: {notes(row)}." for row in timed]
    waiting = [row[0] for row in rows if not cells(row)]
    lines += [f"- *{r['row']}*: not measured, {r['reason']}." for r in waiting]
    commits = dict.fromkeys(
        f"`{r['commit'][:9]}`{' with local changes' if r['dirty'] else ''} ({r['run'][:10]})"
        for row in timed
        for r in row[:1]
    )
    versions = ", ".join(f"{name} {v}" for name, v in newest["versions"].items())
    lines += ["", f"Measured at {', '.join(commits)}; {versions}."] if timed else []
    return "\n".join(lines)


def _table(lines: list[list[str]]) -> list[str]:
    """Markdown, without columns that are empty throughout."""
    used = [i for i in range(len(HEADER)) if any(line[i] for line in lines)]
    rows = [HEADER, ["---"] * len(HEADER), *lines]
    return [_line(row[i] for i in used) for row in rows]


def rewrite(text: str, block: str) -> str | None:
    """`text` with the part between the markers replaced, or None without markers."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    inside = f"{block}\n" if block else ""
    return f"{head}{BEGIN}\n{inside}{END}{tail}" if begin and end else None


def _aim(record: Record) -> list[str]:
    met = record.get("met")
    return [record.get("aim", ""), "" if met is None else "yes" if met else "no"]


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _times(ratio: float) -> str:
    return f"{ratio:.2f}×" if ratio < 100 else f"{ratio:.0f}×"


def _line(items: Iterable[str]) -> str:
    return "| " + " | ".join(items) + " |"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Rewrite the README's benchmark tables.")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    block = markdown(options.results)
    old = options.readme.read_text(encoding="utf-8") if options.readme.exists() else ""
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
