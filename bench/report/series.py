"""Records to the lines of plots: what there is to draw for each kind."""

from __future__ import annotations

import re

from bench.core.measure import OURS
from bench.report.table import Record

Group = list[Record]  # one row's records
Lines = dict[str, list[tuple[float, float]]]
PANELS = 4  # rows of one latency figure


def find_length(rows: list[Group]) -> dict[str, Lines]:
    """By dtype, lines of (length, tokens/s), the limit among them."""
    found: dict[str, Lines] = {}
    for record in _timed(rows):
        whole = record.get("suite") == "scaling" and record["unit"] == "tokens/s"
        if whole and record.get("length"):
            lines = found.setdefault(record["dtype"], {})
            rate = record["tokens"] / record["p50"]
            lines.setdefault(record["candidate"], []).append((record["length"], rate))
            if record["candidate"] == OURS and record.get("share"):
                limit = (record["length"], rate / record["share"])
                lines.setdefault("limit", []).append(limit)
    return {dtype: lines for dtype, lines in found.items() if len(lines.get(OURS, ())) > 2}


def find_batch(rows: list[Group]) -> dict[str, Lines]:
    """By what else there is to a row, lines of (texts per call, milliseconds per text)."""
    found: dict[tuple[str, str], Lines] = {}
    for record in _timed(rows):
        if record.get("batch") and record["unit"] in ("s", "tokens/s"):
            layers = re.search(r"\d+ layers", record["row"])
            words = (f"{record.get('length', 'ragged')} tokens", record["dtype"])
            key = record.get("test", ""), ", ".join((*words, layers[0] if layers else ""))
            lines = found.setdefault(key, {})
            point = (record["batch"], 1e3 * record["p50"] / record["batch"])
            lines.setdefault(record["candidate"], []).append(point)
    kept = {key: lines for key, lines in found.items() if _long(lines) and _function(lines)}
    most = sorted(kept, key=lambda key: -len(kept[key][OURS]))[:2]
    # Reversed: of two tests with one title the longer stays.
    return {title.rstrip(", "): kept[test, title] for test, title in reversed(most)}


def find_latency(rows: list[Group]) -> list[Group]:
    kept = [
        [r for r in row if r.get("sorted")]
        for row in rows
        if row[0].get("suite") == "latency" and row[0]["unit"] == "s"
        and "GPU time" not in row[0]["row"]
    ]
    return [row for row in kept if any(r["candidate"] == OURS for r in row)][:PANELS]


def _timed(rows: list[Group]) -> list[Record]:
    return [record for row in rows for record in row if "p50" in record]


def _long(lines: Lines) -> bool:
    return len(lines.get(OURS, ())) > 1


def _function(lines: Lines) -> bool:
    return all(len({x for x, _ in line}) == len(line) for line in lines.values())
