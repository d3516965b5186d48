"""Options of `pytest bench/`, the `bench` fixture, and the table at the end.

Without `--benchmark` every row runs once at toy size as a smoke test: results are compared, nothing
is recorded. Rows of `bench_gpu_*.py` need a CUDA device; with TRITON_INTERPRET=1 their smoke test
runs on the CPU, with interpreted kernels. Other files are a CPU's, unless they say ANY_DEVICE.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.core import gputime, record, replay, workloads
from bench.core.harness import SCALES, Bench
from bench.core.progress import Progress, suite_of
from bench.core.proof import Proof
from bench.core.replay import Replay
from bench.report import regress, table

BENCH = pytest.StashKey[Bench]()
PROOF = pytest.StashKey[Proof]()
KEEP = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("m3fast bench")
    option = group.addoption
    option("--benchmark", action="store_true", help="measure, record, print the table")
    option("--suite", default="default", metavar="NAMES",
           help="comma list of default, full (adds the 24-layer rows: up to an hour) and suites, "
           f"which are all unless given: {', '.join(suites())}")  # fmt: skip
    option("--model", metavar="PATH",
           help="a folder, or m3fast-tiny, for rows that else use random weights")  # fmt: skip
    option("--quick", action="store_true",
           help="with --benchmark: at most 3 rounds and 10 s each, nothing recorded")  # fmt: skip
    option("--first", action="store_true",
           help="with --benchmark: those few rows that a first run on a GPU wants, a second or two "
           "each, without peers that take long to load or compile")  # fmt: skip
    option("--record", action="store_true", default=True, dest="bench_record",
           help="append to bench/results/ (the default with --benchmark)")  # fmt: skip
    option("--no-record", action="store_false", dest="bench_record")
    option("--records", type=Path, metavar="FILE",
           help="append there instead, at any size, --quick and --first too")  # fmt: skip
    option("--device", choices=("auto", "cpu", "cuda"), default="auto",
           help="whose rows to run; auto is cuda where there is such a device")  # fmt: skip
    option("--no-gate", action="store_true",
           help="do not run a suite's tests first: they have run already")  # fmt: skip
    option("--verdicts", type=Path, metavar="FILE",
           help="run no tests first: what came of tests/gpu; see bench/core/proof.py")  # fmt: skip
    option("--threads", type=int,
           help="threads of every candidate: 2 unless given, with a GPU all cores")  # fmt: skip


def suites() -> list[str]:
    return sorted({suite_of(file) for file in Path(__file__).parent.rglob("bench_*.py")})


def _chosen(config: pytest.Config) -> set[str]:
    """What --suite names."""
    names = {name.strip() for name in config.getoption("--suite").split(",")}
    known = ["default", "full", *suites()]
    if unknown := sorted(names.difference(known)):
        raise pytest.UsageError(
            f"--suite {', '.join(unknown)}: unknown; there are {', '.join(known)}"
        )
    return names


def _model(config: pytest.Config) -> Path | None:
    name = config.getoption("--model")
    if name is None:
        return None
    path = workloads.TINY if name == "m3fast-tiny" else Path(name)
    if not (path / "config.json").exists():
        raise pytest.UsageError(f"--model {name}: no folder with a config.json")
    return path.resolve()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("python_files", "bench_*.py")
    config.addinivalue_line("markers", "first: a row of --first")
    if config.getoption("--quick") and config.getoption("--first"):
        raise pytest.UsageError("--quick, --first: expected one of them, found both")
    chosen, model = _chosen(config), _model(config)
    if not config.getoption("--benchmark") and (unmet := replay.unmet(config)):
        raise pytest.UsageError(f"{', '.join(unmet)}: rows are timed with --benchmark only")
    if not config.getoption("--benchmark") or replay.disabled(config):
        scale = "smoke"
    else:
        full = "full" if "full" in chosen else "default"
        scale = "first" if config.getoption("--first") else full
        scale = "quick" if config.getoption("--quick") else scale
    name = config.getoption("--device")
    cuda = name == "cuda" or (name == "auto" and torch.cuda.is_available())
    if cuda and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: torch finds no CUDA device")
    cores = len(os.sched_getaffinity(0))
    threads = min(config.getoption("--threads") or (cores if cuda else 2), cores)
    # Read by the tokenizers' thread pool at first use, for us and for every peer alike.
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(threads)
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    words = gputime.words(device) if cuda else record.device()
    commit, dirty = record.commit()
    common = {
        "run": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "dirty": dirty,
        "device": words,
        "threads": threads,
        "scale": scale,
        "tree": record.tree(),
        "versions": record.versions(),
    } | ({"clocks": gputime.clocks()} if cuda else {})
    file = config.getoption("--records")
    keep = config.getoption("bench_record") and (file or scale in ("default", "full"))

    def save(records: list[dict[str, Any]]) -> None:
        # Row by row: an hour's run that is stopped keeps what it has measured.
        if keep:
            record.append(records, words, file)

    def say(line: str) -> None:
        if scale != "smoke":
            capture = config.pluginmanager.getplugin("capturemanager")
            with capture.global_and_fixture_disabled():
                print(f"  {line}", flush=True)

    if scale != "smoke":
        config.pluginmanager.register(Progress(say), "m3fast bench progress")
    config.stash[KEEP] = bool(keep)
    verdicts = config.getoption("--verdicts")
    unproven = config.getoption("--no-gate") or (scale == "smoke" and not verdicts)
    config.stash[PROOF] = Proof(device.type, unproven, verdicts)
    its = Bench(SCALES[scale], threads, common, say, save, device, model)
    if replay.installed(config):
        replayed = Replay(config, {"device": words, "threads": threads})
        config.pluginmanager.register(replayed, "m3fast bench replay")
        if scale != "smoke":
            its.replay = replayed
    config.stash[BENCH] = its


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    bench = config.stash[BENCH]
    interpreted = bench.scale.smoke and os.environ.get("TRITON_INTERPRET") == "1"
    cuda = bench.device.type == "cuda"
    if interpreted:
        gputime.let_scalars_count_loops()
    wanted = _chosen(config) - {"default", "full"}
    first = config.getoption("--first")
    chosen = [
        item
        for item in items
        if (not wanted or suite_of(item.path) in wanted)
        and (not first or item.get_closest_marker("first"))
    ]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen
    for item in items:
        if item.path.name.startswith("bench_gpu_"):
            if not cuda and not interpreted:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        elif interpreted or (cuda and not getattr(item.module, "ANY_DEVICE", False)):
            item.add_marker(pytest.mark.skip(reason="a CPU's row: --device cpu"))


@pytest.fixture(autouse=True)
def _interpreter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels themselves where GPU rows run without a GPU."""
    if request.path.name.startswith("bench_gpu_"):
        from m3fast.kernels import dispatch
        from m3fast.runner import buckets

        if request.config.stash[BENCH].device.type == "cpu":
            monkeypatch.setattr(dispatch, "interpreter", True)
            # A runner begins with its largest bucket, of 8,192 tokens: minutes to interpret.
            # Beyond 16, as with the rows of a query, batches take the way without buckets.
            monkeypatch.setattr(buckets, "BUCKETS", (8, 16))


@pytest.fixture
def bench(request: pytest.FixtureRequest) -> Bench:
    config = request.config
    its, proof = config.stash[BENCH], config.stash[PROOF]
    suite = suite_of(request.path)
    row = request.node.originalname
    if proof.waits(suite, row):
        its.say(f"{suite}: its tests first")
    red = proof.red(suite, row)
    if progress := config.pluginmanager.getplugin("m3fast bench progress"):
        progress.begin()
    its.begin(suite, f"{request.path.name}::{request.node.originalname}", red)
    return its


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    groups = config.stash[BENCH].groups
    if config.stash[BENCH].scale.smoke or not groups:
        return
    write = terminalreporter.write_line
    terminalreporter.section(f"{groups[0][0]['device']}, {groups[0][0]['threads']} threads")
    write(table.plain([line for group in groups for line in table.cells(group)]))
    write("")
    for group in groups:
        write(f"{group[0]['row']}: {table.notes(group)}")
    if config.stash[KEEP]:
        records = [r for group in groups for r in group]
        file = config.getoption("--records") or record.file_of(records[0]["device"])
        write("")
        write("\n".join(regress.check(table.read(file), records[0]["run"]).lines()))
