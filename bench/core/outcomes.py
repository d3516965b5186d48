"""Records of a row's candidates, from their samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.core import measure
from bench.core.measure import OURS, P99_SAMPLES, Sampled
from bench.core.rows import Aim

Ratio = Callable[[Sequence[float], Sequence[float]], float | None]


def records(
    found: Mapping[str, Sampled],
    absent: Mapping[str, str],
    aims: Mapping[str, Aim],
    ratio: Ratio,
    void: Mapping[str, str],
    limit: Callable[[float | None], Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """One record per candidate, m3fast's first; see `Bench.add` for the arguments.

    Args:
        limit: p50 -> the share of the machine's limit that it reaches, and the limit.
    """
    ours = found[OURS].seconds if OURS in found else []
    names = sorted(found, key=lambda name: name != OURS)
    kept = [
        {"candidate": name} | _outcome(name, found[name], ours, aims.get(name), ratio, void, limit)
        for name in names
    ]
    skipped = [{"candidate": n, "status": "skipped", "reason": r} for n, r in absent.items()]
    return kept + skipped


def _outcome(
    name: str,
    its: Sampled,
    ours: Sequence[float],
    aim: Aim | None,
    ratio: Ratio,
    void: Mapping[str, str],
    limit: Callable[[float | None], Mapping[str, Any]],
) -> dict[str, Any]:
    if its.wrong:
        status = "failed" if its.wrong.startswith("failed") else "wrong"
        return {"status": status, "reason": its.wrong}
    if name in void:
        return {"status": "void", "reason": void[name]}
    record: dict[str, Any] = {"status": "ok"}
    record |= measure.quantiles(its.seconds) | {"samples": len(its.seconds)}
    record |= limit(record.get("p50"))
    if its.cosine:
        record["cosine"] = its.cosine
    if len(its.seconds) >= P99_SAMPLES:
        record["sorted"] = [float(f"{s:.4g}") for s in measure.ordered(its.seconds)]
    value = record.get("p50")
    if name != OURS and ours:
        value = record["ratio"] = ratio(its.seconds, ours)
        if (spread := measure.spread(its.seconds, ours)) and ratio is measure.ratio:
            record["ratios"] = [float(f"{x:.4g}") for x in spread]
    if aim and aim.tail:
        value = record["p99"] / record["p50"] if "p99" in record else None
    if aim and value is not None:
        record |= {"aim": str(aim), "met": aim.met(value)}
    return record
