"""Two engines on the same data: what one loses against the other, such as int8 against float32."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from m3fast.errors import InputError
from m3fast.evaluate.nearness import BEST, Late, Nearness, overlap
from m3fast.evaluate.run import Evaluation, Pass, Result, settle, silent, together

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from m3fast.engine.engine import Engine
    from m3fast.evaluate.dataset import Dataset
    from m3fast.evaluate.nearness import Figures
    from m3fast.evaluate.run import Values


@dataclass(frozen=True, slots=True)
class Comparison:
    """An engine's figures beside a reference's.

    Attributes:
        found, against: both evaluations.
        agreement: per dataset, mode -> `best`, the mean share of the ten best documents in common,
            and `first`, the share of queries with the same first one; 0 to 1.
        nearness: of all texts: `dense` and `colbert` -> `documents` and `queries` -> `p1`, `median`
            and `min` of the cosines between both engines' vectors; `sparse` -> the same two ->
            `best`, the mean share of a text's ten heaviest terms in common, and `error`, the rms of
            the weights' error over that of the weights; `colbert` -> `maxsim` -> `mean` and `max`
            of the absolute errors of MaxSim, with the reference's ten best documents by dense, and
            `pairs`, how many these were. A head that the checkpoint lacks is missing.
    """

    found: Evaluation
    against: Evaluation
    agreement: tuple[Values, ...]
    nearness: Figures

    @property
    def mean_agreement(self) -> Values:
        """Mean over the datasets, each counting alike."""
        n = len(self.agreement)
        return {
            mode: {name: math.fsum(a[mode][name] for a in self.agreement) / n for name in values}
            for mode, values in self.agreement[0].items()
        }


def compare(
    engine: Engine,
    against: Engine,
    datasets: Sequence[Dataset],
    *,
    weights: str | Sequence[float] = "miracl",
    rerank: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Comparison:
    """Evaluate both engines as `evaluate` does, and compare their vectors on the way.

    Each engine encodes every text once. Vectors are held as by `evaluate`, for both.

    Args:
        engine: what is judged; against: the reference, with the same heads, sizes and tokens.
        datasets: at least one, each of more than 10 documents.
        weights, rerank: as in `evaluate`.
        progress: called with the number of texts encoded since the last call, by either engine.

    Raises:
        InputError: an argument is not as described, or ir-measures is missing.
    """
    _check(engine, against)
    both, rerank = settle(engine, datasets, weights, rerank)
    for data in datasets:
        if len(data.documents) <= BEST:
            raise InputError(
                f"{data.name}: expected more than {BEST} documents, of which the {BEST} best are "
                f"compared, found {len(data.documents)}"
            )
    nearness, results = Nearness(), (list[Result](), list[Result]())
    agreement: list[Values] = []
    for shared in together(datasets):
        ours, theirs = (
            Pass(each, shared, both, rerank, progress or silent) for each in (engine, against)
        )
        nearness.add("queries", ours.queries, theirs.queries)
        late = Late(ours.queries, theirs.queries) if engine.outputs.colbert else None
        for window, other in zip(ours.windows(), theirs.windows(), strict=True):
            nearness.add("documents", window, other)
            if late is not None:
                late.update(window, other)
        if late is not None:
            nearness.add_late(late)
        agreement += map(_agreement, ours.rankings(), theirs.rankings())
        for its, passing in zip(results, (ours, theirs), strict=True):
            its += passing.results()
    found, other = (Evaluation(tuple(its), both, rerank) for its in results)
    return Comparison(found, other, tuple(agreement), nearness.figures())


def _check(engine: Engine, against: Engine) -> None:
    sizes = [
        {
            "heads": [name for name, there in asdict(each.outputs).items() if there],
            "a width of": each.config.hidden_size,
            "a vocabulary of": each.config.vocab_size,
            "max_length": each.max_length,
            "a device of type": each.device.type,  # whose windows are as large
        }
        for each in (engine, against)
    ]
    for name, wanted in sizes[0].items():
        if sizes[1][name] != wanted:
            raise InputError(f"against: expected {name} {wanted}, found {sizes[1][name]}")


def _agreement(
    ours: dict[str, list[list[int]]], theirs: dict[str, list[list[int]]]
) -> Values:
    return {
        mode: {
            "best": _mean([overlap(a[:BEST], b[:BEST]) for a, b in zip(rows, others, strict=True)]),
            "first": _mean([float(a[:1] == b[:1]) for a, b in zip(rows, others, strict=True)]),
        }
        for mode, rows in ours.items()
        for others in (theirs[mode],)
    }


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)
