"""`m3fast verify`: prints what the check of `m3fast.verify` found, as tables or JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from m3fast.cli.table import table
from m3fast.verify.check import Report, check

if TYPE_CHECKING:
    import argparse

HALF_MAX = 65504.0  # largest float16


def run(args: argparse.Namespace) -> int:
    """Print the report; 1 where a check failed.

    Raises:
        M3FastError: the model cannot be loaded, or bad arguments.
        OSError: the fixture cannot be read.
    """
    report = check(args.model, args.device, args.lexical_fixture, args.skip_goldens)
    _print_json(args.model, report) if args.json else _print_tables(args.model, report)
    return 1 if report.failed else 0


def _print_json(model: str, report: Report) -> None:
    skipped = report.why_no_goldens
    found: dict[str, Any] = {
        "model": model,
        "device": report.device,
        "ok": not report.failed,
        "goldens": "not checked: " + skipped if skipped else "checked",
        "checks": [{**asdict(c), "ok": c.ok} for c in report.checks],
        "errors": [asdict(error) for error in report.errors],
        "peaks": [asdict(peak) for peak in report.peaks],
        "unfit": report.unfit,
    }
    print(json.dumps(found, indent=1))


def _print_tables(model: str, report: Report) -> None:
    print(f"{model} on {report.device}, {report.n_texts} texts\n")
    print("Distance from plain torch in float64:")
    rows = [
        [e.dtype, e.head, *(f"{v:.1e}" for v in (e.max, e.mean, e.plain)), f"{e.cosine:.7f}"]
        for e in report.errors
    ]
    print(table(["", "", "max", "mean", "plain torch's max", "least cosine"], rows, left=2))
    print("\nLargest activations of each layer:")
    rows = [
        [str(i), *(f"{v:.1f}" for v in (p.qkv, p.ffn, p.hidden)), str(p.channel)]
        for i, p in enumerate(report.peaks)
    ]
    print(table(["layer", "qkv", "ffn", "hidden", "in channel"], rows))
    top = max(max(p.qkv, p.ffn, p.hidden) for p in report.peaks)
    print(f"float16 holds up to {HALF_MAX:,.0f}: {HALF_MAX / top:,.0f} times the largest\n")
    rows = [
        ["ok" if c.ok else "FAILED", c.name, f"{c.value:.1e}", f"{c.limit:.1e}"]
        for c in report.checks
    ]
    print(table(["check", "", "found", "allowed"], rows, left=2))
    for name, reason in report.unfit.items():
        print(f"{name} does not hold this model: {reason}")
    if report.why_no_goldens:
        print(f"goldens not checked: {report.why_no_goldens}")
    failed, count = len(report.failed), len(report.checks)
    print(f"\n{failed} of {count} checks failed" if failed else "\nall checks passed")
