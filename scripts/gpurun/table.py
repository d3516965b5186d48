"""What the console shows last: steps, figures, kernels by share, failures, in 12,000 characters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.report import table
from bench.report.table import OURS

from gpurun.out import FAILURES, KERNELS, LOG, RECORDS, TESTS, Out
from gpurun.steps import Result

MOST = 11_500  # characters; the commands of make stand before
SHARES = (2_800, 4_200, 2_800, 2_400, 700)  # of steps, figures, kernels, failures, what is left out


def render(
    out: Out, header: Sequence[str], results: Sequence[Result], left_out: Sequence[str], run: str
) -> str:
    """The table of one run: of its steps, and of the rows whose "run" is not before it."""
    bad = [result for result in results if not result.ok]
    parts = [
        "\n".join([*header, "", *map(str, results)]),
        _figures(out, run),
        _kernels(out, run),
        _failures(out, bad, run),
        "\n".join(f"left out: {words}" for words in left_out),
    ]
    seconds = sum(result.seconds for result in results)
    end = "all well" if not bad else "not well: " + ", ".join(r.name for r in bad)
    parts = [_cut(part, most) for part, most in zip(parts, SHARES, strict=True) if part.strip()]
    text = "\n\n".join(parts)
    return f"{_cut(text, MOST - 600)}\n\n{seconds:.0f} s of steps, {_cut(end, 500)}\n"


def _cut(text: str, most: int) -> str:
    """Whole lines from the beginning, and how many were left out."""
    if len(text) <= most:
        return text
    kept = text[: most - 40].rpartition("\n")[0]
    if not kept:
        return f"{text[: most - 4]} ..."
    return f"{kept}\n[{text.count(chr(10)) - kept.count(chr(10))} lines left out: see {LOG}]"


def _figures(out: Out, run: str) -> str:
    """A line for each row: m3fast's figure, its share of the limit, and what stands beside it."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in out.lines(RECORDS):
        if record["run"] >= run:
            rows.setdefault((record["device"], record["row"]), []).append(record)
    return "\n".join(f"{row}: " + "; ".join(map(_figure, its)) for (_, row), its in rows.items())


def _figure(record: dict[str, Any]) -> str:
    aim, met = table.aim(record)
    words = [
        "" if record["candidate"] == OURS else record["candidate"],
        table.figure(record),
        table.ratio(record),
        f"{share} of the limit" if (share := table.percent(record.get("share"))) else "",
        f"({aim}: {met})" if aim else "",
        f"({str(record['reason'])[:70]})" if record.get("reason") else "",
    ]
    return " ".join(filter(None, words))


def _kernels(out: Out, run: str) -> str:
    found = [line for line in out.lines(KERNELS) if line.get("run", "") >= run]
    return "\n".join(str(line["words"]) for line in found if "words" in line)


def _failures(out: Out, bad: Sequence[Result], run: str) -> str:
    if not bad:
        return ""
    lines = [f"{FAILURES} has each of them whole:"]
    lines += [f"{r.name}: {r.state}: {r.last[:200]}" for r in bad]
    now = False
    for line in out.lines(TESTS):
        if "tree" in line:
            now = line["run"] >= run
        elif now and line.get("outcome", "passed") not in ("passed", "skipped"):
            lines.append(f"{line['test']}: {line['outcome']}: {line.get('why', '')}")
    return "\n".join(lines)
