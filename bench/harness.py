"""What a bench file talks to: rows, aims, and the recorder behind the `bench` fixture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from bench import gpu, measure
from bench.measure import OURS, Absent, Candidate, Sampled


@dataclass(frozen=True)
class Scale:
    """How much to measure.

    Attributes:
        rounds: most samples per candidate; None for what the bench file asks.
        budget: seconds per candidate after which it stops sampling.
        gpu_rounds: as rounds, where samples are GPU time: microseconds each.
    """

    name: str
    rounds: int | None
    budget: float
    gpu_rounds: int | None = None

    @property
    def smoke(self) -> bool:
        return self.name == "smoke"


SCALES = {
    "smoke": Scale("smoke", 1, 5.0, 1),
    "quick": Scale("quick", 3, 10.0, 20),
    "default": Scale("default", None, 60.0),
    "full": Scale("full", None, 300.0),
}


@dataclass(frozen=True)
class Aim:
    """A goal for a ratio, or for m3fast's own figure."""

    sign: str
    value: float
    unit: str

    def __str__(self) -> str:
        value = self.value * {" %": 100, " µs": 1e6}.get(self.unit, 1)
        return f"{self.sign} {value:g}{self.unit}"

    def met(self, found: float) -> bool:
        return found >= self.value if self.sign == "≥" else found <= self.value


def times(value: float) -> Aim:
    return Aim("≥", value, "×")


def share(value: float) -> Aim:
    return Aim("≥", value, " %")


def at_most(value: float, unit: str) -> Aim:
    return Aim("≤", value, unit)


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
        unit: of the table: s, tokens/s, TFLOP/s or MiB. Records always hold seconds, or MiB.
        work: floating-point operations of one input, for `unit="TFLOP/s"`.
    """

    name: str
    shape: str
    dtype: str = "float32"
    tokens: int | None = None
    padding: float | None = None
    unit: str = "s"
    note: str = ""
    work: float | None = None


class Bench:
    """Times candidates and keeps the records; one per pytest session."""

    def __init__(
        self,
        scale: Scale,
        threads: int,
        common: Mapping[str, Any],
        say: Callable[[str], None],
        save: Callable[[list[dict[str, Any]]], None],
        device: torch.device = torch.device("cpu"),  # noqa: B008 - immutable
    ) -> None:
        self.scale, self.threads, self.device = scale, threads, device
        self._common, self._say, self._save = dict(common), say, save
        self.groups: list[list[dict[str, Any]]] = []

    def pick(self, real: Any, smoke: Any) -> Any:
        """One of two sizes: the real one, or one that runs in a blink."""
        return smoke if self.scale.smoke else real

    def need(self, row: Row, here: bool, reason: str) -> None:
        """Skip the row, on record, where the machine cannot run it."""
        if not here:
            self._keep(row, [{"candidate": OURS, "status": "skipped", "reason": reason}])
            pytest.skip(reason)

    def full_only(self, full: bool) -> None:
        if full and self.scale.name != "full":
            pytest.skip("a row of --benchmark --suite full")

    def compare(
        self,
        row: Row,
        makers: Mapping[str, Callable[[], Candidate]],
        inputs: Sequence[Any],
        *,
        rounds: int,
        aims: Mapping[str, Aim] | None = None,
        warm: Any = None,
        judge: Callable[[str, Any, Any], str] = lambda name, truth, result: "",
        ahead: float | None = None,
        stream: torch.cuda.Stream | None = None,
    ) -> None:
        """Make the candidates, time them in turn, record what came out.

        Args:
            makers: by name, makes one candidate, or raises Absent or ImportError (or whatever a
                peer that is broken here raises); the first that is here is the truth.
            rounds: samples per candidate at the default scale.
            ahead: samples are GPU time; seconds that the host may need to enqueue one. None for
                wall time, which is what a CPU has.
            stream: where they run; the current one if None.
        """
        watch = None
        if ahead is not None and self.device.type == "cuda":
            watch = gpu.Events(self.device, ahead, stream)
        most = self.scale.gpu_rounds if watch else self.scale.rounds
        ready: dict[str, Candidate] = {}
        absent: dict[str, str] = {}
        for name, make in makers.items():
            try:
                ready[name] = make()
            except Exception as error:
                missing = isinstance(error, Absent | ImportError)
                if name == OURS or (self.scale.smoke and not missing):
                    raise
                line = str(error).strip().split("\n")[0][:120]
                kind = type(error).__name__
                absent[name] = (line or kind) if missing else f"failed: {kind}: {line}"
        found = measure.interleave(
            ready,
            inputs,
            rounds=min(rounds, most or rounds),
            budget=self.scale.budget,
            warm=warm,
            judge=judge,
            say=lambda line: self._say(f"{row.name}: {line}"),
            watch=watch,
        )
        self.add(row, found, absent, aims or {})

    def add(
        self,
        row: Row,
        found: Mapping[str, Sampled],
        absent: Mapping[str, str],
        aims: Mapping[str, Aim],
        ratio: Callable[[Sequence[float], Sequence[float]], float | None] = measure.ratio,
    ) -> None:
        """Record samples taken elsewhere, such as in other processes.

        Args:
            found: samples in the row's unit; absent: reasons by name.
            ratio: (peer's samples, m3fast's samples) -> what `aims` are held against.
        """
        ours = found[OURS].seconds
        records = []
        for name in sorted(found, key=lambda n: n != OURS):
            its = found[name]
            record: dict[str, Any] = {"candidate": name, "status": "ok"}
            if its.wrong:
                status = "failed" if its.wrong.startswith("failed") else "wrong"
                records.append(record | {"status": status, "reason": its.wrong})
                continue
            record |= measure.quantiles(its.seconds) | {"samples": len(its.seconds)}
            value = record.get("p50")
            if name != OURS and ours:
                value = record["ratio"] = ratio(its.seconds, ours)
            if name in aims and value is not None:
                record |= {"aim": str(aims[name]), "met": aims[name].met(value)}
            records.append(record)
        skipped = [{"candidate": n, "status": "skipped", "reason": r} for n, r in absent.items()]
        self._keep(row, records + skipped)
        if found[OURS].wrong:
            pytest.fail(f"{row.name}: m3fast: {found[OURS].wrong}", pytrace=False)
        wrong = {n: s.wrong for n, s in found.items() if s.wrong}
        if wrong and self.scale.smoke:
            pytest.fail(f"{row.name}: {wrong}", pytrace=False)

    def _keep(self, row: Row, records: list[dict[str, Any]]) -> None:
        about = {
            "row": row.name,
            "dtype": row.dtype,
            "shape": row.shape,
            "unit": row.unit,
            "tokens": row.tokens,
            "padding": row.padding,
            "note": row.note,
            "work": row.work,
        }
        group = [
            self._common | {k: v for k, v in about.items() if v not in (None, "")} | r
            for r in records
        ]
        for record in group:
            for key, value in record.items():
                if isinstance(value, float):
                    record[key] = float(f"{value:.5g}")
        self.groups.append(group)
        self._save(group)
