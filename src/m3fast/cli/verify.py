"""`m3fast verify`: is what this model gives on this machine right, and how exact is each dtype?"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from m3fast.cli.table import table
from m3fast.engine.engine import Engine
from m3fast.errors import CheckpointError, InputError, NonFiniteError
from m3fast.runner.device import DTYPES
from m3fast.verify import goldens
from m3fast.verify.plain import engine_vectors, plain_vectors

if TYPE_CHECKING:
    import argparse

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
# The rule of FlashAttention: an error may be twice that of plain torch in the same dtype.
FACTOR, FLOOR = 2.0, 2e-6
HALF_MAX = 65504.0  # largest float16


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
        plain: max of plain torch in the same dtype.
    """

    dtype: str
    head: str
    max: float
    mean: float
    cosine: float
    plain: float


def run(args: argparse.Namespace) -> int:
    """Print the report; 1 where a check failed.

    Raises:
        M3FastError: the model cannot be loaded, or bad arguments.
        OSError: the fixture cannot be read.
    """
    fixture = None if args.lexical_fixture is None else goldens.read_fixture(args.lexical_fixture)
    engine = Engine.from_pretrained(args.model, device=args.device, dtype="float32")
    if fixture is not None and not engine.outputs.sparse:
        raise InputError("--lexical-fixture: expected a model with a sparse head, found none")
    why_not = "--skip-goldens" if args.skip_goldens else goldens.why_not_genuine(engine)
    checks: list[Check] = []
    if fixture is not None:
        error = goldens.lexical_error(engine, fixture)
        checks.append(Check("lexical fixture float32", error, goldens.LEXICAL_TOLERANCE))

    device = str(engine.device)
    tokens = engine.tokenise(TEXTS, engine.max_length)
    exact, peaks = plain_vectors(engine, tokens, torch.float64)
    dtypes = _dtypes(engine.device)
    plain = {name: plain_vectors(engine, tokens, DTYPES[name])[0] for name in dtypes}
    errors: list[Error] = []
    unfit: dict[str, str] = {}
    for name in dtypes:
        try:
            if name != "float32":
                engine.close()  # two models at a time may not fit
                engine = Engine.from_pretrained(args.model, device=device, dtype=name)
            found = engine.encode(TEXTS, show_progress=False)
        except (NonFiniteError, CheckpointError) as error:
            # Where plain torch overflows in this dtype, so may we: the dtype is unfit.
            unfit[name] = str(error)
            finite = all(np.isfinite(vectors).all() for vectors in plain[name].values())
            narrow = name != "float32" and not finite
            checks.append(Check(f"finite {name}", 0.0 if narrow else math.inf, 0.0))
            continue
        rows = _errors(name, engine_vectors(found), plain[name], exact)
        errors += rows
        checks += [_accuracy(row) for row in rows]
        if not why_not:
            scores = goldens.score_errors(found[:2], found[2:4])
            limit = goldens.TOLERANCE[name]
            checks += [Check(f"golden {head} {name}", e, limit) for head, e in scores.items()]
    _report(args, device, why_not, errors, peaks, checks, unfit)
    return 0 if all(check.ok for check in checks) else 1


def _dtypes(device: torch.device) -> list[str]:
    old = device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0)
    return ["float32", "float16"] if old else ["float32", "bfloat16", "float16"]


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


def _report(
    args: argparse.Namespace,
    device: str,
    why_not: str,
    errors: list[Error],
    peaks: list[Peaks],
    checks: list[Check],
    unfit: dict[str, str],
) -> None:
    failed = [check.name for check in checks if not check.ok]
    if args.json:
        report: dict[str, Any] = {
            "model": args.model,
            "device": device,
            "ok": not failed,
            "goldens": "not checked: " + why_not if why_not else "checked",
            "checks": [{**asdict(check), "ok": check.ok} for check in checks],
            "errors": [asdict(error) for error in errors],
            "peaks": [asdict(peak) for peak in peaks],
            "unfit": unfit,
        }
        print(json.dumps(report, indent=1))
        return
    print(f"{args.model} on {device}, {len(TEXTS)} texts\n")
    print("Distance from plain torch in float64:")
    rows = [
        [e.dtype, e.head, *(f"{v:.1e}" for v in (e.max, e.mean, e.plain)), f"{e.cosine:.7f}"]
        for e in errors
    ]
    print(table(["", "", "max", "mean", "plain torch's max", "least cosine"], rows, left=2))
    print("\nLargest activations of each layer:")
    rows = [
        [str(i), *(f"{v:.1f}" for v in (p.qkv, p.ffn, p.hidden)), str(p.channel)]
        for i, p in enumerate(peaks)
    ]
    print(table(["layer", "qkv", "ffn", "hidden", "in channel"], rows))
    top = max(max(p.qkv, p.ffn, p.hidden) for p in peaks)
    print(f"float16 holds up to {HALF_MAX:,.0f}: {HALF_MAX / top:,.0f} times the largest\n")
    rows = [
        ["ok" if c.ok else "FAILED", c.name, f"{c.value:.1e}", f"{c.limit:.1e}"] for c in checks
    ]
    print(table(["check", "", "found", "allowed"], rows, left=2))
    for name, reason in unfit.items():
        print(f"{name} does not hold this model: {reason}")
    if why_not:
        print(f"goldens not checked: {why_not}")
    print(f"\n{len(failed)} of {len(checks)} checks failed" if failed else "\nall checks passed")
