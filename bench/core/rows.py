"""`Row`, `Aim` and `Scale`: a workload and its sizes, its goal, how much of it to measure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

TIMED = ("s", "tokens/s", "requests/s", "TFLOP/s", "GB/s")  # units whose samples are seconds


@dataclass(frozen=True)
class Scale:
    """How much to measure.

    Attributes:
        rounds: most samples per candidate; None for what the bench file asks.
        budget: seconds per candidate after which it stops sampling, with 3 samples at least
            unless they take three times as long.
        gpu_rounds: as rounds, where samples are GPU time: microseconds each.
        roof: seconds for each of the machine's limits.
    """

    name: str
    rounds: int | None
    budget: float
    gpu_rounds: int | None = None
    roof: float = 2.0

    @property
    def smoke(self) -> bool:
        return self.name == "smoke"


SCALES = {
    "smoke": Scale("smoke", 1, 5.0, 1),
    "first": Scale("first", 10, 1.0, 10, roof=0.3),
    "quick": Scale("quick", 3, 10.0, 20, roof=0.6),
    "default": Scale("default", None, 20.0),
    "full": Scale("full", None, 60.0),
}


@dataclass(frozen=True)
class Aim:
    """A goal for a ratio, or for m3fast's own figure; `tail`: for its p99 ÷ p50."""

    sign: str
    value: float
    unit: str
    tail: bool = False

    def __str__(self) -> str:
        value = self.value * {" %": 100, " ms": 1e3, " µs": 1e6}.get(self.unit, 1)
        return f"{'p99 ' if self.tail else ''}{self.sign} {value:g}{self.unit}"

    def met(self, found: float) -> bool:
        return found >= self.value if self.sign == "≥" else found <= self.value


def times(value: float) -> Aim:
    return Aim("≥", value, "×")


def share(value: float) -> Aim:
    return Aim("≥", value, " %")


def at_most(value: float, unit: str) -> Aim:
    return Aim("≤", value, unit)


def millis(value: float) -> Aim:
    return Aim("≤", value / 1e3, " ms")


def tail(value: float) -> Aim:
    return Aim("≤", value, "× p50", tail=True)


def micros(value: float) -> Aim:
    return Aim("≤", value / 1e6, " µs")


@dataclass(frozen=True)
class Row:
    """One workload.

    Attributes:
        name: says workload, size and dtype; rows of one name are compared over time.
        shape: sizes in words.
        tokens: real tokens of one input, for `unit="tokens/s"`.
        padding: positions of the padded batch / real tokens.
        unit: of the table: s, tokens/s, requests/s, TFLOP/s, GB/s or MiB. Records hold seconds,
            or MiB.
        requests: answered in one sample, for `unit="requests/s"`.
        work: floating-point operations of one input, for `unit="TFLOP/s"` and the limit.
        moved: bytes that one input must read and write at least, for the limit.
        model: it uses `Bench.checkpoint`; with --model the row is one of that model.
        length: tokens per text, batch: texts, corpus: documents; for plots against them.
    """

    name: str
    shape: str
    dtype: str = "float32"
    tokens: int | None = None
    padding: float | None = None
    unit: str = "s"
    note: str = ""
    work: float | None = None
    moved: float | None = None
    model: bool = False
    length: int | None = None
    batch: int | None = None
    corpus: int | None = None
    requests: int | None = None

    def said(self) -> dict[str, Any]:
        """What its records say of it."""
        found = asdict(self)
        found.pop("model")
        return {"row": found.pop("name")} | found
