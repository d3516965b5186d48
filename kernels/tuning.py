"""Kernel configs measured on a device: tuned/<device>.json, looked up by the nearest shape.

A kernel's own heuristic is the default. A file is a list of
{"op": str, "key": {name: str | int}, "config": {field: value}}; `m3fast tune` writes it.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
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
    file = file_for(device)
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else []


def tuned(op: str, key: Key, default: Config, device: torch.device) -> Config:
    """The config measured for the shape nearest to `key` on this device, else `default`.

    Strings of the key must be equal; of numbers the nearest by ratio wins.
    """
    return nearest(_table(device), op, key, default)


def nearest(table: list[dict[str, Any]], op: str, key: Key, default: Config) -> Config:
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
