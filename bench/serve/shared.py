"""What the rows of the suite `serve` have in common: their turns, records, sizes and notes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median

from bench.core.dtypes import NAMES, TOLERANCE
from bench.core.harness import Bench, Row
from bench.core.measure import Sampled
from bench.core.progress import paced
from bench.core.rows import Aim
from bench.core.workloads import mix, padding_ratio, texts
from bench.peers import encodings, infinity
from bench.serve.requests import Requests
from bench.serve.servers import FLAG, INFINITY, TOGETHER, Server
from bench.serve.turns import Taken, TakeTurn, disturbed, take

ENGINE, ASYNC = "Engine.encode in process", "AsyncEngine in process"
DENSE = ("dense",)

def take_turns(
    bench: Bench, row: Row, candidates: Mapping[str, TakeTurn], inputs: list[Requests], *,
    rounds: int, budget: float, outputs: tuple[str, ...] = DENSE,
) -> dict[str, Taken]:  # fmt: skip
    """Turns of all, FlagEmbedding's and the engine's answers being the truth."""
    quick = bench.scale.name == "quick"
    first = {name: candidates[name] for name in (FLAG, ENGINE) if name in candidates}
    dtype = next(short for short, name in NAMES.items() if name == row.dtype)
    return take(
        {**first, **candidates},
        inputs,
        rounds=min(rounds, bench.scale.rounds or rounds),
        budget=budget / 3 if quick else min(budget, bench.scale.budget),
        least=1 if quick else 2,
        judge=encodings.differ(TOLERANCE[dtype], outputs),
        say=paced(lambda line: bench.say(f"{row.name}: {line}")),
    )


def add(
    bench: Bench, row: Row, found: Mapping[str, Taken], absent: Mapping[str, str],
    aims: Mapping[str, Aim] | None = None, cores: int = 0,
) -> None:  # fmt: skip
    samples = {name: its.sampled() for name, its in found.items()}
    bench.add(row, samples, absent, aims or {}, void=void(bench, found, ENGINE, cores))


def void(bench: Bench, found: Mapping[str, Taken], name: str, cores: int = 0) -> dict[str, str]:
    """`void` of Bench.add: `name` does not count where the engine's own turns were spoiled."""
    reason = disturbed(found[ENGINE], cores) if ENGINE in found and not bench.scale.smoke else ""
    return {name: reason} if reason else {}


def row_of(
    bench: Bench, path: Path, name: str, dtype: str, words: str, tokens: int | None = None,
    padding: float | None = None, unit: str = "s",
) -> Row:  # fmt: skip
    return Row(
        name,
        shape=f"{bench.shape_of(path)}, {words}",
        dtype=NAMES[dtype],
        tokens=tokens,
        padding=padding,
        unit=unit,
        model=True,
        requests=1 if unit == "requests/s" else None,
    )


def passages(each: int, requests: int, sets: int) -> list[Requests]:
    """So many sets of requests, `each` passages in a request, of about 180 tokens."""
    found = []
    for seed in range(sets):
        total = each * requests
        its = texts(mix("passages", 250 * total, seed)[:total], seed)
        found.append(Requests([its[i : i + each] for i in range(0, total, each)]))
    return found


def sizes(inputs: list[Requests]) -> tuple[str, int, float]:
    """What the first of them holds, in words; its tokens; its padding in sorted batches of 32."""
    its = inputs[0]
    # A word is a token, and <s> and </s> are two more.
    lengths = [text.count(" ") + 3 for text in its.texts()]
    words = f"{len(its.inputs)} requests, {len(lengths)} texts of {min(lengths)} to {max(lengths)}"
    return f"{words} tokens", sum(lengths), padding_ratio(lengths, 32)


def beyond(its: Taken, engine: Taken) -> Sampled:
    """By round, how much longer it took than the engine."""
    pairs = zip(its.turns, engine.turns, strict=False)
    gaps = [median(a.seconds) - median(b.seconds) for a, b in pairs]
    wrong = its.wrong or engine.wrong
    return Sampled([] if wrong else gaps, wrong)


def note(servers: Mapping[str, Server], found: Mapping[str, Taken], *more: str) -> str:
    """How the servers are set up, and the CPU that a request took."""
    client = [1e3 * turn.client for name in servers for turn in found[name].turns]
    cpu = [
        f"{name} {1e3 * median(turn.cpu for turn in its.turns):.3g}"
        for name, its in found.items()
        if its.turns and not its.wrong
    ]
    parts = [*more]
    if cpu and client:
        parts.append(f"CPU per request: client {median(client):.2g}, {', '.join(cpu)} ms")
    if together := [f"{n}: {s.note}" for n, s in servers.items() if s.note]:
        parts.append(
            f"behind FastAPI a thread takes what waits, up to {TOGETHER} texts, in "
            f"{'; '.join(together)}"
        )
    if INFINITY in servers:
        parts.append(f"{INFINITY}'s own server, batches of 32: {infinity.versions()}")
    return "; ".join(parts)
