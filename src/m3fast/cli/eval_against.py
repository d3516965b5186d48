"""`m3fast eval --against`: the second engine, and tables and JSON of what the first one loses."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import m3fast
from m3fast.cli.table import table
from m3fast.errors import InputError
from m3fast.evaluate.measures import MEASURES
from m3fast.evaluate.plot import title
from m3fast.kernels import native
from m3fast.runner.device import pick_device, pick_dtype

if TYPE_CHECKING:
    import argparse

    from m3fast import Engine
    from m3fast.evaluate import Comparison, Evaluation

DEFAULT = "float32"  # of --against-model


def load(args: argparse.Namespace, model: str, dtype: str) -> Engine:
    """A model as the arguments say."""
    return m3fast.Engine.from_pretrained(
        model,
        device=args.device,
        dtype=dtype,
        max_length=args.max_length,
        pooling=args.pooling,
    )


def check_against(args: argparse.Namespace) -> None:
    """InputError unless --against is a dtype, or not given."""
    if args.against is not None:
        _dtype(args)


def reference(args: argparse.Namespace, engine: Engine) -> Engine | None:
    """What --against and --against-model name, None without either.

    Raises:
        InputError: that is the engine itself.
    """
    if args.against is None and args.against_model is None:
        return None
    model = args.model if args.against_model is None else args.against_model
    same = model == args.model or (Path(model).is_dir() and Path(model).resolve() == engine.path)
    if same and _dtype(args) == engine.dtype:
        raise InputError(
            f"--against: expected another dtype or another --against-model than {args.model} in "
            f"{dtype_name(engine)}, found the same"
        )
    return load(args, model, args.against or DEFAULT)


def _dtype(args: argparse.Namespace) -> torch.dtype:
    try:
        return pick_dtype(args.against or DEFAULT, pick_device(args.device))
    except InputError as error:
        raise InputError(str(error).replace("dtype:", "--against:", 1)) from None


def tables(found: Comparison, ours: str, theirs: str) -> list[str]:
    """A table per measure, then how near both engines are.

    Args:
        ours, theirs: what columns call the engine and the reference.
    """
    pairs = list(zip(found.found.results, found.against.results, strict=True))
    names = [a.name for a, _ in pairs] if len(pairs) > 1 else []
    blocks: list[str] = []
    for name in MEASURES:
        rows: list[list[str]] = []
        for mode in found.found.modes:
            ends = found.found.mean[mode][name], found.against.mean[mode][name]
            changes = [(a.values[mode][name], b.values[mode][name]) for a, b in pairs]
            rows.append(
                [title(mode), *(f"{100 * end:.1f}" for end in ends), _change(*ends)]
                + [_change(*each) for each in changes if names]
            )
        blocks.append(table([name, ours, theirs, "change", *names], rows, left=1))
    agreed = [
        [title(mode), *(f"{100 * values[key]:.1f}" for key in ("best", "first"))]
        for mode, values in found.mean_agreement.items()
    ]
    blocks.append(table(["documents in common", "ten best", "first"], agreed, left=1))
    return [f"\n{block}" for block in [*blocks, *_nearness(found)]]


def _nearness(found: Comparison) -> list[str]:
    near = found.nearness
    vectors = [
        [f"{title(head)}, {kind}", *(f"{near[head][kind][key]:.5f}" for key in keys)]
        for keys in (("p1", "median", "min"),)
        for head in ("dense", "colbert")
        if head in near
        for kind in ("documents", "queries")
    ]
    blocks = [table(["cosine of vectors", "1st percentile", "median", "least"], vectors, left=1)]
    if "sparse" in near:
        weights = [
            [kind, *(f"{100 * near['sparse'][kind][key]:.2f}" for key in ("best", "error"))]
            for kind in ("documents", "queries")
        ]
        blocks.append(table(["sparse", "ten best terms", "rms error"], weights, left=1))
    if "colbert" in near:
        late = near["colbert"]["maxsim"]
        blocks.append(
            f"MaxSim is off by {late['mean']:.5f} on average, at most {late['max']:.5f}, in "
            f"{late['pairs']:,} pairs of a query and a document."
        )
    return blocks


def results_json(found: Evaluation) -> list[dict[str, Any]]:
    """Of each dataset."""
    return [
        {
            "name": r.name,
            "queries": r.queries,
            "documents": r.documents,
            "cut": r.cut,
            "values": r.values,
        }
        for r in found.results
    ]


def against_json(found: Comparison, args: argparse.Namespace, other: Engine) -> dict[str, Any]:
    """All of it, but what `m3fast eval --json` writes of the first engine anyway."""
    names = [r.name for r in found.against.results]
    agreement = zip(names, found.agreement, strict=True)
    return {
        "model": args.against_model or args.model,
        "dtype": dtype_name(other),
        **({"int8_bits": bits} if (bits := int8_bits(other)) else {}),
        "results": results_json(found.against),
        "mean": found.against.mean,
        "agreement": {
            "results": [{"name": name, "values": values} for name, values in agreement],
            "mean": found.mean_agreement,
        },
        "nearness": found.nearness,
    }


def labels(args: argparse.Namespace, engine: Engine, other: Engine) -> tuple[str, str]:
    """What columns call either: their dtypes, or of one dtype the models' names."""
    if engine.dtype != other.dtype:
        return dtype_name(engine), dtype_name(other)
    return model_name(args.model), model_name(args.against_model)


def against_title(args: argparse.Namespace, other: Engine) -> str:
    """What the heading calls the reference."""
    model = f"{model_name(args.against_model)}, " if args.against_model else ""
    return f"{model}{dtype_name(other)}"


def model_name(model: str) -> str:
    """A folder's own name, or a hub id."""
    return Path(model).resolve().name if Path(model).is_dir() else model


def dtype_name(engine: Engine) -> str:
    """Of the weights."""
    return str(engine.dtype).removeprefix("torch.")


def int8_bits(engine: Engine) -> int:
    """Bits of what a linear layer in int8 reads, its weights have 8; 0 in another dtype."""
    if engine.dtype != torch.int8:
        return 0
    return native.library().int8_bits() if native.library() else 8


def _change(ours: float, theirs: float) -> str:
    change = f"{100 * (ours - theirs):+.2f}"
    return "0.00" if float(change) == 0 else change
