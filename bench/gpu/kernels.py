"""Which kernels a batch's GPU time goes to: `python -m bench.gpu.kernels --output FILE`.

Of 32k tokens of passages, and of one query of 20 tokens replayed from its CUDA graph: a table by
share, and of the query its nodes in order, each with the gap before it. A line of JSON for each,
appended as soon as it is found. With TRITON_INTERPRET=1 or --smoke all of it runs at toy size on
the CPU, where torch's operations stand in for kernels.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bench.core import gputime, measure, record, workloads
from bench.core.workloads import Shape
from bench.gpu import candidates

QUERY, SHOWN = 20, 18  # tokens; lines of a table, and of the nodes


@dataclass(frozen=True)
class Node:
    """A kernel or copy that ran: microseconds, since any beginning."""

    name: str
    start: float
    end: float

    @property
    def took(self) -> float:
        return self.end - self.start


def profiled(work: Callable[[], Any], device: torch.device) -> list[Node]:
    """What ran on the device in `work`, in order; on a CPU torch's outermost operations."""
    cuda = device.type == "cuda"
    kind = ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU
    with profile(activities=[kind], acc_events=True) as found:
        work()
        if cuda:
            torch.cuda.synchronize(device)
    events = found.events() or ()
    where = DeviceType.CUDA if cuda else DeviceType.CPU
    nodes = [
        Node(e.name, e.time_range.start, e.time_range.end)
        for e in events
        if e.device_type == where and (cuda or e.cpu_parent is None)
    ]
    return sorted(nodes, key=lambda node: node.start)


def shares(nodes: Sequence[Node]) -> list[dict[str, Any]]:
    """Per name its calls, microseconds, and share of all nodes' time, the largest first."""
    by_name: dict[str, list[float]] = {}
    for node in nodes:
        by_name.setdefault(node.name, []).append(node.took)
    busy = sum(node.took for node in nodes) or 1.0
    rows = [
        {"name": name, "calls": len(its), "us": _short(sum(its)), "share": _short(sum(its) / busy)}
        for name, its in by_name.items()
    ]
    return sorted(rows, key=lambda row: -row["us"])


def in_order(nodes: Sequence[Node]) -> list[dict[str, Any]]:
    """Each node with its microseconds and those since the one before ended."""
    before = [nodes[0].start, *(node.end for node in nodes)] if nodes else []
    return [
        {"name": node.name, "us": _short(node.took), "gap": _short(node.start - end)}
        for node, end in zip(nodes, before, strict=False)
    ]


def sums(nodes: Sequence[Node]) -> dict[str, float]:
    """total_us: from the first node's start to the last one's end; kernels_us: of all nodes."""
    total = max(node.end for node in nodes) - nodes[0].start if nodes else 0.0
    return {"total_us": _short(total), "kernels_us": _short(sum(node.took for node in nodes))}


def typical(work: Callable[[], Any], device: torch.device, times: int = 5) -> list[Node]:
    """Of profiles of so many runs the one whose total is the median."""
    found = [profiled(work, device) for _ in range(times)]
    return sorted(found, key=lambda nodes: sums(nodes)["total_us"])[times // 2]


def alone(work: Callable[[], Any], watch: measure.Watch, times: int = 9) -> float:
    """Median microseconds without the profiler, which adds to short kernels' gaps."""
    found = []
    for _ in range(times):
        stop = watch()
        work()
        found.append(1e6 * stop())
    return _short(median(found))


def lines(its: dict[str, Any]) -> list[str]:
    """What is printed of a record."""
    said = [
        f"{its['kernels']}: {its['tokens']} tokens, {its['total_us']:.0f} µs, of them "
        f"{its['kernels_us']:.0f} in {sum(row['calls'] for row in its['table'])} kernels and "
        f"copies; {its['alone_us']:.0f} µs without the profiler"
    ]
    for row in its["table"][:SHOWN]:
        share = f"{100 * row['share']:5.1f} %"
        said.append(f"{share} {row['us']:9.1f} µs {row['calls']:5} x {brief(row['name'])}")
    nodes = its.get("nodes", [])
    if nodes:
        said.append(f"the first of {len(nodes)} nodes: gap before it, its own time")
    for node in nodes[:SHOWN]:
        said.append(f"{node['gap']:7.1f} {node['us']:7.1f} µs  {brief(node['name'])}")
    return said


def brief(name: str) -> str:
    """A kernel's name without what C++ templates and namespaces add."""
    plain = re.sub(r"^void |\(anonymous namespace\)::|\b\w+::|\(.*", "", name)
    while (shorter := re.sub(r"<[^<>]*>", "", plain)) != plain:
        plain = shorter
    return plain.strip()[:48] or name[:48]


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Shares of GPU time by kernel.")
    parser.add_argument("--output", type=Path, required=True, help="lines of JSON, appended")
    parser.add_argument("--smoke", action="store_true", help="toy size on the CPU, interpreted")
    options = parser.parse_args(arguments)
    smoke = options.smoke or os.environ.get("TRITON_INTERPRET") == "1"
    if smoke:
        _interpret()
    elif not torch.cuda.is_available():
        parser.error("expected a CUDA device, found none: --smoke runs without")
    device = torch.device("cpu" if smoke else f"cuda:{torch.cuda.current_device()}")
    words = record.device() if smoke else gputime.words(device)
    commit, dirty = record.commit()
    common = {
        "run": datetime.now(UTC).isoformat(timespec="seconds"),
        "scale": "smoke" if smoke else "first",
        "commit": commit, "dirty": dirty, "tree": record.tree(), "device": words,
        "versions": record.versions(), "clocks": {} if smoke else gputime.clocks(),
    }  # fmt: skip

    shape = Shape(1, 128) if smoke else Shape(24)
    dtype = torch.float16 if smoke else torch.bfloat16
    config, weights = candidates.load(workloads.checkpoint(shape), device, dtype)
    from m3fast.runner.gpu import GpuRunner

    runner = GpuRunner(config, weights, device, graphs=not smoke)
    submit = candidates.submits(runner, config)
    passages = workloads.mix("passages", 40 if smoke else candidates.TOKENS)
    times = 1 if smoke else 5
    sizes = (("passages", passages, candidates.AHEAD), ("query", [QUERY], 2e-3))
    for name, lengths, ahead in sizes:
        batch = candidates.batch(config, lengths, device, 0)
        for _ in range(times):  # compiled, captured, replayed, and warm
            submit(batch)()
        watch = measure.wall if smoke else gputime.Events(device, ahead, runner.stream)
        took = alone(lambda batch=batch: submit(batch), watch, times)
        nodes = typical(lambda batch=batch: submit(batch)(), device, times)
        if not nodes:
            parser.exit(1, f"{name}: the profiler saw nothing run on {device}\n")
        its = {"kernels": name, "shape": str(shape), "dtype": str(dtype).removeprefix("torch."),
               "tokens": sum(lengths), "texts": len(lengths), "graph": len(runner.graphs) > 0
               and name == "query", **sums(nodes), "alone_us": took,
               "table": shares(nodes)}  # fmt: skip
        if name == "query":
            its["nodes"] = in_order(nodes)
        its["words"] = "\n".join(lines(its))
        record.append([common | its], words, options.output)
        print(its["words"], flush=True)
    return 0


def _interpret() -> None:
    """Kernels run on the CPU; before Triton is imported."""
    os.environ["TRITON_INTERPRET"] = "1"
    gputime.let_scalars_count_loops()
    from m3fast.kernels import dispatch
    from m3fast.runner import buckets

    dispatch.interpreter = True
    buckets.BUCKETS = (8, 32)  # the largest is run first: minutes to interpret


if __name__ == "__main__":
    raise SystemExit(main())
