"""Records -> rows and their figures in words, for the terminal's and the README's tables."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from math import floor
from pathlib import Path
from typing import Any

from bench.core.measure import OURS
from bench.core.paths import ROOT
from bench.report.names import shown

HEADER = ("Workload", "m3fast", "Peer", "Its figure", "Ratio", "Of limit", "Aim", "Met")
# By unit: what a sample is of, and how many of it are one.
PER_SECOND = {"tokens/s": ("tokens", 1.0), "requests/s": ("requests", 1.0),
              "TFLOP/s": ("work", 1e12), "GB/s": ("moved", 1e9)}  # fmt: skip
ROOF = {"flops": "GFLOP/s", "bandwidth": "GB/s"}
ORDER = ("encode", "latency", "serve", "infinity", "scaling", "load", "memory", "import",
         "tokenise", "packing", "gemm", "attention", "layernorm", "sparse", "maxsim")  # fmt: skip

Record = dict[str, Any]


def read(file: Path) -> list[Record]:
    """All records of a file, oldest first."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]


def read_results(folder: Path) -> dict[str, list[Record]]:
    """Records by the names of their files, each of one device.

    Raises:
        ValueError: a file holds two devices, whose figures would stand in one table.
    """
    found = {file.stem: read(file) for file in sorted(folder.glob("*.jsonl"))}
    for stem, records in found.items():
        if len(devices := sorted({r["device"] for r in records})) > 1:
            raise ValueError(f"{stem}.jsonl: expected one device, found {'; '.join(devices)}")
    return found


def read_kernels(folder: Path, stem: str) -> list[Record]:
    """What `bench.gpu.kernels` recorded of a device; nothing of most."""
    file = folder / "kernels" / f"{stem}.jsonl"
    return read(file) if file.exists() else []


def latest(records: Iterable[Record]) -> list[list[Record]]:
    """Per row and device, in order of appearance, the newest run but those that skipped it."""
    rows: dict[tuple[str, str], dict[str, list[Record]]] = {}
    for record in records:
        its = rows.setdefault((record["device"], record["row"]), {})
        its.setdefault(record["run"], []).append(record)
    chosen = []
    for runs in rows.values():
        ran = [r for r in runs.values() if any(x["status"] != "skipped" for x in r)]
        chosen.append((ran or list(runs.values()))[-1])
    return chosen


def current(records: list[Record], tests: Collection[str] | None = None) -> list[list[Record]]:
    """Rows to show, in the order of their suites.

    Args:
        tests: those that exist, as records name them; None to look into bench/.
    """
    named = [r for r in records if "test" in r]
    if not named:  # of before records said their test
        return latest(records)
    tests = existing_tests() if tests is None else tests

    def part(record: Record) -> tuple[Any, ...]:
        first = record.get("scale") == "first"  # by design some of a test's rows only
        return record["test"], record.get("full"), record.get("model"), first

    runs: dict[tuple[Any, ...], dict[str, set[str]]] = {}
    for r in named:
        runs.setdefault(part(r), {}).setdefault(r["run"], set()).add(r["row"])
    # The last run with most of a test's rows; one of some rows (-k) after it replaces just those.
    since = {
        its: max(found, key=lambda run: (len(found[run]), run)) for its, found in runs.items()
    }
    kept = [r for r in named if r["run"] >= since[part(r)] and r["test"] in tests]
    order = {suite: i for i, suite in enumerate(ORDER)}
    return sorted(latest(kept), key=lambda row: order.get(row[0]["suite"], -1))


def existing_tests() -> set[str]:
    """`bench_sparse.py::test_sparse_dicts` and so on."""
    return {
        f"{file.name}::{name}"
        for file in (ROOT / "bench").rglob("bench_*.py")
        for name in re.findall(r"^def (test_\w+)", file.read_text(encoding="utf-8"), re.M)
    }


def figure(record: Record) -> str:
    """p50 in the row's unit, with p99 and cosines where there are any; or why there is none."""
    if "p50" not in record:
        return record["status"]
    more = []
    p50, unit = record["p50"], record["unit"]
    amount, factor = PER_SECOND.get(unit, ("", 1.0))
    if amount:
        text = f"{_digits(record[amount] / p50 / factor)} {unit}"
    elif unit != "s":
        text = f"{_digits(p50)} {unit}"
    else:
        factor, unit = (1, "s") if p50 >= 1 else (1e3, "ms") if p50 >= 1e-3 else (1e6, "µs")
        text = f"{_digits(p50 * factor)} {unit}"
        if "p99" in record:
            more.append(f"p99 {_digits(record['p99'] * 1e3)} ms")
    more += cosine(record)
    return f"{text} ({', '.join(more)})" if more else text


def cosine(record: Record) -> list[str]:
    """Of dense vectors in eight bits with fp32's, 1st percentile / least, cut and not rounded up.

    Of one text there is one.
    """
    its = record.get("cosine")
    if not its:
        return []
    shown = dict.fromkeys(f"{floor(1e4 * its[key]) / 1e4:.4f}" for key in ("p1", "min"))
    return [f"cos {' / '.join(shown)}"]


def cells(records: list[Record]) -> list[list[str]]:
    """Table lines of one row: one per peer, or a single one where there is no peer or no figure.

    None where the row was skipped.
    """
    ours = ours_of(records)
    if ours and "p50" not in ours:
        blank = [""] * (len(HEADER) - 2)
        return [] if ours["status"] == "skipped" else [[ours["row"], ours["status"], *blank]]
    lines = []
    for peer in records:
        if peer["candidate"] != OURS:
            limit = percent((ours or peer).get("share"))
            lines.append([shown(peer["candidate"]), figure(peer), ratio(peer), limit, *aim(peer)])
    if ours and ("aim" in ours or not lines):
        lines.insert(0, ["", "", "", percent(ours.get("share")), *aim(ours)])
    return [[records[0]["row"], figure(ours) if ours else "", *line] for line in lines]


def notes(records: list[Record]) -> str:
    """What stands behind a row's figures: shape, tokens, padding, samples, the case's own note."""
    ours = ours_of(records) or records[0]
    if "p50" not in ours:
        word = "not measured" if ours["status"] == "skipped" else ours["status"]
        return f"{word}, {ours['reason']}"
    parts = [ours["shape"]]
    if ours.get("scale") in ("first", "quick"):
        parts.append(f"a {ours['scale']} run")
    if ours.get("tokens"):
        parts.append(f"{ours['tokens']:,} tokens")
    if ours.get("padding"):
        parts.append(f"padding ratio {ours['padding']:.2f}")
    counts = {shown(r["candidate"]): str(r["samples"]) for r in records if "samples" in r}
    if len(set(counts.values())) == 1:
        counts = {"each": counts.popitem()[1]}
    parts.append("samples: " + ", ".join(f"{n} {name}" for name, n in counts.items()))
    if roof := ours.get("roof"):
        parts.append("limit: " + " and ".join(f"{v / 1e9:,.0f} {ROOF[k]}" for k, v in roof.items()))
    lost = {shown(r["candidate"]): r["cosine"] for r in records if "cosine" in r}
    if lost:
        texts = max(its["texts"] for its in lost.values())
        of = f"1st percentile / least of {texts} texts" if texts > 1 else "of one text"
        parts.append(f"cos: of dense vectors with fp32's, {of}")
    for key, words in (("colbert", "least cosine of token vectors"), ("gap", "weights off by")):
        if each := [f"{its[key]:.4g} {name}" for name, its in lost.items() if key in its]:
            parts.append(f"{words}: {', '.join(each)}")
    reasons = [f"{shown(r['candidate'])}: {r['reason']}" for r in records if r.get("reason")]
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


def grid(header: Sequence[str], lines: list[list[str]], absent: str = "") -> list[str]:
    """A table in Markdown, without columns that are empty throughout; `absent` for empty cells."""
    used = [i for i in range(len(header)) if any(line[i] for line in lines)]
    filled = [[cell or absent for cell in line] for line in lines]
    rows = [header, ["---"] * len(header), *filled]
    return ["| " + " | ".join(row[i] for i in used) + " |" for row in rows]


def ours_of(records: list[Record]) -> Record | None:
    return next((r for r in records if r["candidate"] == OURS), None)


def ratio(record: Record) -> str:
    found = record.get("ratio")
    if found is None:
        return ""
    return percent(found) if record.get("aim", "").endswith("%") else times(found)


def aim(record: Record) -> list[str]:
    met = record.get("met")
    return [record.get("aim", ""), "" if met is None else "yes" if met else "no"]


def percent(share: float | None) -> str:
    if share is None:
        return ""
    return f"{100 * share:.0f} %" if share >= 0.0995 else f"{100 * share:.2g} %"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def times(ratio: float) -> str:
    return f"{ratio:.2f}×" if ratio < 100 else f"{ratio:.0f}×"


