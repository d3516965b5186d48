"""Whether m3fast became slower since the last earlier commit on the same device.

A machine that is slow today is slow for every candidate, so what counts is m3fast beside its peers:

    change of a row   median of old ratio / new ratio, over peers of both runs at one version
    no such peer      (new p50 / old p50) / drift,  drift = median new p50 / old p50 of all peers

A row has regressed if that is beyond TOLERANCE and noise cannot have made it: of most of its peers
the ratios' middle 60 % of rounds lie apart from those of before, or without peers those of times.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from bench.core.measure import OURS
from bench.report.table import Record

TOLERANCE = 1.05
NO_SPREAD = 0.15  # either side of a ratio recorded without its quantiles

ByCandidate = dict[str, Record]  # a row's records
Pair = tuple[ByCandidate, ByCandidate]  # the older run's, the newer one's


@dataclass(frozen=True)
class Checked:
    """What a check found: regressions in words, of how many rows, since which commits."""

    slower: list[str]
    rows: int
    since: list[str]

    def lines(self) -> list[str]:
        if not self.rows:
            return ["regression check: no earlier commit has any of these rows"]
        head = f"of {self.rows} rows that {', '.join(self.since)} has too"
        found = len(self.slower) or "none"
        return [f"regression check: {found} {head} became slower", *self.slower]


def check(records: Iterable[Record], run: str | None = None) -> Checked:
    """Compare each row's newest run, or `run`, with the newest before it of another commit."""
    rows: dict[tuple[str, str], dict[str, ByCandidate]] = {}  # of one device each
    for record in records:
        if "p50" in record:
            its = rows.setdefault((record["device"], record["row"]), {})
            its = its.setdefault(record["run"], {})
            its[record["candidate"]] = record
    pairs = [pair for runs in rows.values() if (pair := _pair(runs, run))]
    since = sorted({old[OURS]["commit"][:9] for old, _ in pairs})
    slower = []
    for old, new in pairs:
        if found := _slower(old, new, _drift(pairs, old, new)):
            slower.append(f"{new[OURS]['row']}: {found} ({old[OURS]['commit'][:9]})")
    return Checked(slower, len(pairs), since)


def _pair(runs: dict[str, ByCandidate], run: str | None) -> Pair | None:
    """(old, new) of one row."""
    timed = {name: row for name, row in sorted(runs.items()) if OURS in row}
    last = run or next(reversed(timed), "")
    if last not in timed:
        return None
    new = timed[last]
    for name, old in reversed(timed.items()):
        if name < last and old[OURS]["commit"] != new[OURS]["commit"]:
            return (old, new) if _alike(old[OURS], new[OURS]) else None
    return None


def _alike(old: Record, new: Record) -> bool:
    """Whether both did the same; a row's name should say as much, but shapes do change."""
    keys = ("shape", "dtype", "unit", "threads", "tokens")
    return all(old.get(key) == new.get(key) for key in keys)


def _common(old: ByCandidate, new: ByCandidate) -> list[tuple[Record, Record]]:
    """Peers of both runs, but of another version."""
    return [
        (old[name], new[name])
        for name in old
        if name != OURS and name in new and _version(old[name]) == _version(new[name])
    ]


def _version(peer: Record) -> str | None:
    """The peer's own, or torch's for what is made of it."""
    versions = {_plain(name): version for name, version in peer["versions"].items()}
    named = [v for name, v in versions.items() if name in _plain(peer["candidate"])]
    return named[0] if named else versions.get("torch")


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def _drift(pairs: list[Pair], old: ByCandidate, new: ByCandidate) -> float:
    """How much slower all else is than in the old run: of all peers both runs have."""
    times = [
        b["p50"] / a["p50"]
        for before, now in pairs
        if before[OURS]["run"] == old[OURS]["run"] and now[OURS]["run"] == new[OURS]["run"]
        for a, b in _common(before, now)
        if a["unit"] != "MiB" and a["p50"] > 0
    ]
    return median(times) if times else 1.0


def _slower(old: ByCandidate, new: ByCandidate, drift: float) -> str:
    """How it became slower, or ""."""
    a, b = old[OURS], new[OURS]
    if b["unit"] == "MiB":
        found = b["p50"] / a["p50"]
        return f"{found:.2f} times the memory" if found > TOLERANCE else ""
    peers = [(x, y) for x, y in _common(old, new) if x.get("ratio") and y.get("ratio")]
    if peers:
        change = median(x["ratio"] / y["ratio"] for x, y in peers)
        apart = [_spread(y)[1] < _spread(x)[0] for x, y in peers]
        sure = sum(apart) > len(apart) / 2
        names = ", ".join(x["candidate"] for x, _ in peers)
        return f"{change:.2f} times as slow beside {names}" if change > TOLERANCE and sure else ""
    change = b["p50"] / a["p50"] / drift
    sure = b.get("p20", b["p50"]) > a.get("p80", a["p50"]) * drift
    return f"{change:.2f} times as slow, drift counted" if change > TOLERANCE and sure else ""


def _spread(peer: Record) -> list[float]:
    ratio = peer["ratio"]
    return peer.get("ratios") or [ratio * (1 - NO_SPREAD), ratio * (1 + NO_SPREAD)]
