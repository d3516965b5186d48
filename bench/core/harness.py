"""`Bench`, the recorder behind the `bench` fixture, and the names that a file of rows imports."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.core import gputime, measure, outcomes, workloads
from bench.core.measure import OURS, Absent, Candidate, Maker, Sampled
from bench.core.progress import paced
from bench.core.roof import Roof
from bench.core.rows import SCALES as SCALES
from bench.core.rows import Aim, Row, Scale
from bench.core.rows import at_most as at_most
from bench.core.rows import micros as micros
from bench.core.rows import millis as millis
from bench.core.rows import share as share
from bench.core.rows import tail as tail
from bench.core.rows import times as times
from bench.core.workloads import Shape

# Takes a row's records, and the samples behind them by candidate.
TakeSamples = Callable[[list[dict[str, Any]], Mapping[str, Sequence[float]]], None]
GEMM_SHARE = 0.9  # of the gemm ceiling; a baseline whose own products are slower shows nothing


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
        model: Path | None = None,
    ) -> None:
        self.scale, self.threads, self.device, self.model = scale, threads, device, model
        self.suite = self.test = ""  # of the row that runs
        self.full = False  # it is one of --suite full only
        self.red = ""  # why no row of the suite counts
        self.roof = Roof(device, toy=scale.smoke, seconds=scale.roof)
        self._common, self.say, self._save = dict(common), say, save
        self.replay: TakeSamples = lambda group, samples: None
        self.groups: list[list[dict[str, Any]]] = []

    def begin(self, suite: str, test: str, red: str = "") -> None:
        """The test whose rows come next; `red` says why they do not count."""
        self.suite, self.test, self.red, self.full = suite, test, red, False

    def pick(self, real: Any, smoke: Any) -> Any:
        """One of two sizes: the real one, or one that runs in a blink."""
        return smoke if self.scale.smoke else real

    def encoder_shape(self, layers: int = 2) -> Shape:
        """The encoder to time: of BGE-M3's width, toy size in a smoke test, --model's with one."""
        if self.model:
            return self.shape_of(self.model)
        return self.pick(Shape(layers), Shape(2, 128))

    def checkpoint(self, shape: Shape) -> Path:
        """The random checkpoint of that shape, or --model's folder."""
        return self.model or workloads.checkpoint(shape)

    @staticmethod
    def shape_of(path: Path) -> Shape:
        """Size of a checkpoint's encoder."""
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        hidden = config["hidden_size"]
        return Shape(config["num_hidden_layers"], hidden, config["intermediate_size"] // hidden)

    def slow(
        self, makers: Mapping[str, Maker], *but: str
    ) -> dict[str, Maker]:
        """Peers that take long to load or compile: absent in a first run, and at scales `but`."""

        def absent() -> Candidate:
            raise Absent(f"takes long to make: not in a {self.scale.name} run")

        return dict.fromkeys(makers, absent) if self.scale.name in ("first", *but) else dict(makers)

    def need(self, row: Row, here: bool, reason: str) -> None:
        """Skip the row, on record, where the machine cannot run it."""
        if not here:
            self._keep(row, [{"candidate": OURS, "status": "skipped", "reason": reason}])
            pytest.skip(reason)

    def full_only(self, full: bool) -> None:
        """Skip the 24-layer twin of a row but with --suite full, and where --model is the size."""
        self.full = full
        if full and self.model:
            pytest.skip("--model is measured once")
        if full and self.scale.name != "full":
            pytest.skip("a row of --benchmark --suite full")

    def compare(
        self,
        row: Row,
        makers: Mapping[str, Maker],
        inputs: Sequence[Any],
        *,
        rounds: int,
        aims: Mapping[str, Aim] | None = None,
        warm: Any = None,
        judge: Callable[[str, Any, Any], str] = lambda name, truth, result: "",
        cosine: Callable[[str], dict[str, float] | None] | None = None,
        ahead: float | None = None,
        stream: torch.cuda.Stream | None = None,
        short: bool = False,
        void: Mapping[str, Callable[[], float]] | None = None,
    ) -> None:
        """Make the candidates, time them in turn, record what came out.

        Args:
            makers: by name, makes one candidate, or raises Absent or ImportError (or whatever a
                peer that is broken here raises); the first that is here is the truth.
            rounds: samples per candidate at the default scale.
            cosine: by a candidate's name, what `judge` has seen of its cosines with fp32, for its
                record. Of each of `inputs` a round is then judged.
            ahead: samples are GPU time; seconds that the host may need to enqueue one. None for
                wall time, which is what a CPU has.
            stream: where they run; the current one if None.
            short: a sample takes milliseconds, so that all `rounds` run at any scale but smoke.
            void: by a peer's name, times its matrix products alone and says their rate as a share
                of the best of the gemm suite's ways at the same sizes. Below GEMM_SHARE the peer is
                no strong baseline: its row is void, with the reason and no figure. Called after
                sampling, and only for a peer that ran and was right.
        """
        self._refuse_red(row)
        watch = None
        if ahead is not None and self.device.type == "cuda":
            watch = gputime.Events(self.device, ahead, stream)
        most = self.scale.gpu_rounds if watch else self.scale.rounds
        most = rounds if short and not self.scale.smoke else most
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
            hard=3 * self.scale.budget,
            warm=warm,
            judge=judge,
            judged=len(inputs) if cosine else 1,
            say=paced(lambda line: self.say(f"{row.name}: {line}")),
            watch=watch,
        )
        for name, its in found.items():
            its.cosine = cosine(name) if cosine else None
        weak = {}
        for name, rate in (void or {}).items():
            if name in found and found[name].seconds:
                reached = rate()
                if reached < GEMM_SHARE and not self.scale.smoke:
                    weak[name] = (
                        f"its products reach {100 * reached:.0f} % of the gemm suite's rate, "
                        f"a strong baseline {100 * GEMM_SHARE:.0f} %"
                    )
        self.add(row, found, absent, aims or {}, void=weak)

    def add(
        self,
        row: Row,
        found: Mapping[str, Sampled],
        absent: Mapping[str, str],
        aims: Mapping[str, Aim],
        ratio: Callable[[Sequence[float], Sequence[float]], float | None] = measure.ratio,
        void: Mapping[str, str] | None = None,
    ) -> None:
        """Record samples taken elsewhere, such as in other processes.

        Without m3fast among them, as for what the machine itself can do, there are no ratios.

        Args:
            found: samples in seconds or MiB; absent: reasons by name.
            ratio: (peer's samples, m3fast's samples) -> what `aims` are held against.
            void: by name, why a candidate's samples do not count.
        """
        self._refuse_red(row)
        limit = partial(self._limit, row)
        group = self._keep(row, outcomes.records(found, absent, aims, ratio, void or {}, limit))
        self.replay(group, {name: its.seconds for name, its in found.items()})
        if OURS in found and found[OURS].wrong:
            pytest.fail(f"{row.name}: m3fast: {found[OURS].wrong}", pytrace=False)
        wrong = {n: s.wrong for n, s in found.items() if s.wrong}
        if wrong and self.scale.smoke:
            pytest.fail(f"{row.name}: {wrong}", pytrace=False)

    def _refuse_red(self, row: Row) -> None:
        if self.red:
            self._keep(row, [{"candidate": OURS, "status": "void", "reason": self.red}])
            pytest.fail(f"{row.name}: void: {self.red}", pytrace=False)

    def _limit(self, row: Row, p50: float | None) -> dict[str, Any]:
        """The share of what the machine allows that was reached, and what it allows."""
        if self.scale.smoke or not p50 or row.unit == "MiB":
            return {}
        seconds: list[float] = []
        roof: dict[str, float] = {}
        if row.work:
            if (flops := self.roof.flops(row.dtype)) is None:
                return {}
            roof["flops"] = float(f"{flops:.4g}")
            seconds.append(row.work / flops)
        if row.moved:
            roof["bandwidth"] = float(f"{self.roof.bandwidth:.4g}")
            seconds.append(row.moved / self.roof.bandwidth)
        return {"share": max(seconds) / p50, "roof": roof} if seconds else {}

    def _keep(self, row: Row, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if row.model and self.model:
            row = replace(row, name=f"{row.name}, {self.model.name}")
        about = {"suite": self.suite, "test": self.test, "full": self.full or None} | row.said()
        about["model"] = self.model.name if row.model and self.model else None
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
        return group
