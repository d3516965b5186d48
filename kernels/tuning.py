"""Kernel configs measured on a device: tuned/<device>.json, looked up by the nearest shape.

A kernel's own heuristic is the default. A file is a list of
{"op": str, "key": {name: str | int}, "config": {field: value}}, with what was measured beside
them; `m3fast tune` writes it.
"""

from __future__ import annotations

import functools
import json
import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

Config = TypeVar("Config")
Key = Mapping[str, str | int]
FOLDER = Path(__file__).parent / "tuned"


def file_for(device: torch.device) -> Path:
    """The table of this GPU model, such as tuned/nvidia-h200.json."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return FOLDER / (re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") + ".json")


@functools.cache
def _table(device: torch.device) -> list[dict[str, Any]]:
    return read(file_for(device))


def read(file: Path) -> list[dict[str, Any]]:
    """The rows of a table; none where there is no file."""
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else []


def tuned(op: str, key: Key, default: Config, device: torch.device) -> Config:
    """The config measured for the shape nearest to `key` on this device, else `default`.

    Strings of the key must be equal; of numbers the nearest by ratio wins.
    """
    return nearest(_table(device), op, key, default)


def nearest(table: Sequence[Mapping[str, Any]], op: str, key: Key, default: Config) -> Config:
    """`tuned` on a given table."""
    best, distance = default, math.inf
    for row in table:
        if row["op"] != op or row["key"].keys() != key.keys():
            continue
        apart = 0.0
        for name, value in key.items():
            other = row["key"][name]
            if isinstance(value, int) and isinstance(other, int):
                apart += abs(math.log((1 + value) / (1 + other)))
            elif value != other:
                apart = math.inf
        if apart < distance:
            best, distance = replace(default, **row["config"]), apart  # type: ignore[type-var]
    return best


def tune(
    op: str,
    key: Key,
    configs: Sequence[Config],
    launch: Callable[[Config], Any],
    seconds: Callable[[Callable[[], Any]], float],
    *,
    rounds: int = 5,
    drop: float = math.inf,
    time_is_up: Callable[[], bool] = lambda: False,
    keep: Callable[[Any], Any] = lambda result: result,
    same: Callable[[Any, Any], bool] = lambda first, result: True,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any] | None:
    """Time the configs in turn, `rounds` times over, and pick the one of the least median.

    Args:
        op, key: of the row to make.
        configs: the default first; frozen dataclasses.
        launch: runs the op in one config.
        seconds: times one call of what it is given.
        drop: after the first round, leave a config out that took more than so many times the
            best's time; the default stays.
        time_is_up: asked before each config but the first and before each round but the first;
            from then on none starts.
        keep: takes a copy of a result that the next launch overwrites.
        same: whether a result equals the first's that equals itself; a config whose does not is
            left out.
        say: takes a line for each config, and for each that is left out the reason.

    Returns:
        The row for the table, with its "seconds" and the "default"'s, and how many configs are
        "untried" if time was up. None where none ran.
    """
    times: dict[int, list[float]] = {}
    first: Any = None
    tried = len(configs)
    for i, config in enumerate(configs):
        if i and time_is_up():
            tried = i
            break
        try:
            result = keep(launch(config))
        except Exception as error:  # too much shared memory, or more than Triton can compile
            reason = " ".join(str(error).split())[:160]
            say(f"{op} {words(key)}: {config} left out: {type(error).__name__}: {reason}")
            continue
        truth = result if first is None else first
        if same(truth, result):  # a NaN is not even the same as itself
            first, times[i] = truth, []
        else:
            say(f"{op} {words(key)}: {config} left out: wrong result")
    order = sorted(times)
    for turn in range(rounds):
        if turn and time_is_up():
            break
        for i in order[turn % max(len(order), 1) :] + order[: turn % max(len(order), 1)]:
            times[i].append(seconds(partial(launch, configs[i])))
        if not turn:
            limit = drop * min((its[0] for its in times.values()), default=0.0)
            order = [i for i in order if i == 0 or times[i][0] <= limit]
    if not times:
        return None
    median = {i: statistics.median(its) for i, its in times.items()}
    for i, value in median.items():
        say(f"{op} {words(key)}: {configs[i]} {value * 1e6:.1f} µs")
    best = min(median, key=median.__getitem__)
    row = {"op": op, "key": dict(key), "config": asdict(configs[best])}  # type: ignore[call-overload]
    row |= {"seconds": _short(median[best]), "default": _short(median.get(0))}
    return row | ({"untried": len(configs) - tried} if tried < len(configs) else {})


def merged(
    table: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """`table` with `rows` in the place of those of the same op and key."""
    new = [(row["op"], row["key"]) for row in rows]
    kept = [dict(row) for row in table if (row["op"], row["key"]) not in new]
    return kept + [dict(row) for row in rows]


def save(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a table, one row a line; whoever is stopped meanwhile leaves the old one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(row) for row in rows)
    new = file.with_name(f".{file.name}.part")
    new.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    new.replace(file)


def words(key: Key) -> str:
    """`dtype=torch.bfloat16 dim=64`."""
    return " ".join(f"{name}={value}" for name, value in key.items())


def _short(seconds: float | None) -> float | None:
    return None if seconds is None else float(f"{seconds:.4g}")
