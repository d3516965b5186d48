"""The check that `m3fast verify` makes: published values, and how exact each dtype is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from m3fast.engine.engine import Engine
from m3fast.errors import CheckpointError, InputError, NonFiniteError
from m3fast.runner.device import DTYPES, INT8
from m3fast.verify import goldens
from m3fast.verify.plain import engine_vectors, plain_vectors

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from m3fast.verify.plain import Peaks, Vectors

TEXTS = [
    *goldens.QUERIES,
    *goldens.PASSAGES,
    "",
    "Der schnelle braune Fuchs springt über den faulen Hund.",
    "今天天气很好，我们一起去公园散步吧。",
    "الترجمة الآلية تقرب بين اللغات.",
    "どの言語でも、同じ意味の文は近くにあるべきです。",
    "Машинное обучение и глубокое обучение: в чём разница?",
    "प्यास लगी है, पानी कहाँ मिलेगा?",
    "สวัสดีชาวโลก วันนี้อากาศดีมาก",
    "def add(a: int, b: int) -> int: return a + b  # 3.14159 🙂",
    " ".join(f"clause {i} of a somewhat longer text," for i in range(24)) + " and its end.",
]
# The rule of FlashAttention: an error may be twice that of plain torch in the same dtype. In int8
# plain torch computes with the same rounded weights, and rounds what they multiply as we do.
FACTOR, FLOOR = 2.0, 2e-6
FLOATS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the verdict: `value` may be at most `limit`."""

    name: str
    value: float
    limit: float

    @property
    def ok(self) -> bool:
        return self.value <= self.limit  # a NaN is not


@dataclass(frozen=True, slots=True)
class Error:
    """Distance of one head's vectors from those of plain torch in float64.

    Attributes:
        max, mean: absolute, over entries that are not 0 on both sides.
        cosine: the least of any two vectors.
        plain: max of plain torch in the same dtype; in int8 with the same roundings.
    """

    dtype: str
    head: str
    max: float
    mean: float
    cosine: float
    plain: float


@dataclass(frozen=True, slots=True)
class Report:
    """What a check found.

    Attributes:
        device: it ran there; n_texts: with so many texts.
        why_no_goldens: why the published values were not compared; empty where they were.
        errors: of each dtype and head; peaks: of each layer, in float64.
        unfit: by dtype that cannot hold this model, the reason.
    """

    device: str
    n_texts: int
    why_no_goldens: str
    errors: list[Error]
    peaks: list[Peaks]
    checks: list[Check]
    unfit: dict[str, str]

    @property
    def failed(self) -> list[str]:
        """Names of the checks that failed."""
        return [check.name for check in self.checks if not check.ok]


def check(
    model: str, device: str = "auto", lexical_fixture: str | None = None, skip_goldens: bool = False
) -> Report:
    """Compare a model's outputs in every dtype with plain torch in float64, and with the goldens.

    In float64 the weights are those of the folder, which in int8 are rounded already.

    Args:
        model: m3fast-tiny, a folder or a hub id.
        device: auto, cpu or cuda[:n].
        lexical_fixture: file of lexical weights to compare with, as `goldens.read_fixture` reads.
        skip_goldens: leave the published values out.

    Raises:
        M3FastError: the model cannot be loaded, or bad arguments.
        OSError: the fixture cannot be read.
    """
    fixture = None if lexical_fixture is None else goldens.read_fixture(lexical_fixture)
    engine = Engine.from_pretrained(model, device=device, dtype="float32")
    if fixture is not None and not engine.outputs.sparse:
        raise InputError("--lexical-fixture: expected a model with a sparse head, found none")
    why_not = "--skip-goldens" if skip_goldens else goldens.why_not_genuine(engine)
    checks: list[Check] = []
    if fixture is not None:
        error = goldens.lexical_error(engine, fixture)
        checks.append(Check("lexical fixture float32", error, goldens.LEXICAL_TOLERANCE))

    device = str(engine.device)
    tokens = engine.tokenize(TEXTS, engine.max_length)
    exact, peaks = plain_vectors(engine, tokens, torch.float64)
    dtypes = _dtypes(engine.device)
    floats = [name for name in dtypes if name != INT8]
    plain = {name: plain_vectors(engine, tokens, DTYPES[name])[0] for name in floats}
    errors: list[Error] = []
    unfit: dict[str, str] = {}
    for name in dtypes:
        try:
            if name != "float32":
                engine.close()  # two models at a time may not fit
                engine = Engine.from_pretrained(model, device=device, dtype=name)
            if name == INT8:
                narrow_dtype = engine.runner.weights.type_row.dtype
                plain[name] = plain_vectors(engine, tokens, narrow_dtype)[0]
            found = engine.encode(TEXTS, show_progress=False)
        except (NonFiniteError, CheckpointError) as error:
            # Where plain torch overflows in this dtype, so may we: the dtype is unfit.
            unfit[name] = str(error)
            beside = plain.get(name, {})  # none where int8 did not load
            finite = all(np.isfinite(vectors).all() for vectors in beside.values())
            narrow = name != "float32" and not finite
            checks.append(Check(f"finite {name}", 0.0 if narrow else math.inf, 0.0))
            continue
        rows = _errors(name, engine_vectors(found), plain[name], exact)
        errors += rows
        checks += [_accuracy(row) for row in rows]
        if not why_not and name != INT8:  # nobody has published scores in it
            scores = goldens.score_errors(found[:2], found[2:4])
            limit = goldens.TOLERANCE[name]
            checks += [Check(f"golden {head} {name}", e, limit) for head, e in scores.items()]
    return Report(device, len(TEXTS), why_not, errors, peaks, checks, unfit)


def _dtypes(device: torch.device) -> list[str]:
    if device.type == "cpu":
        return [*FLOATS, INT8]
    old = torch.cuda.get_device_capability(device) < (8, 0)
    return [name for name in FLOATS if not (old and name == "bfloat16")]


def _errors(dtype: str, found: Vectors, plain: Vectors, exact: Vectors) -> list[Error]:
    errors: list[Error] = []
    for head, right in exact.items():
        distance = abs(found[head] - right)
        weighted = (found[head] != 0) | (right != 0)  # most of the vocabulary has no weight
        cosine = _cosines(found[head], right).min(initial=1.0)
        of_plain = float(abs(plain[head] - right).max())
        mean = float(distance[weighted].mean()) if weighted.any() else 0.0
        errors.append(Error(dtype, head, float(distance.max()), mean, float(cosine), of_plain))
    return errors


def _cosines(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    sizes = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    some = sizes != 0  # a text without lexical weights has no direction
    return (a * b).sum(1)[some] / sizes[some]


def _accuracy(error: Error) -> Check:
    # Ours is finite here. Plain torch may overflow in half precision where we do not.
    narrow = error.dtype != "float32" and not math.isfinite(error.plain)
    limit = math.inf if narrow else FACTOR * error.plain + FLOOR
    return Check(f"accuracy {error.head} {error.dtype}", error.max, limit)
