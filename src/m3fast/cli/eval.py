"""`m3fast eval`: measures how well a model retrieves, per language and mode."""

from __future__ import annotations

import json
import platform
import shlex
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import m3fast
from m3fast.cli.eval_against import (
    against_json,
    against_title,
    check_against,
    dtype_name,
    int8_bits,
    labels,
    load,
    model_name,
    reference,
    results_json,
    tables,
)
from m3fast.cli.output_files import check_output, check_plot
from m3fast.cli.table import table
from m3fast.errors import InputError
from m3fast.evaluate import (
    builtin,
    compare,
    cross,
    evaluate,
    hybrid_weights,
    load_dataset,
    n_texts,
    pick,
)
from m3fast.evaluate.measures import MEASURES, need_library
from m3fast.evaluate.plot import draw, title

if TYPE_CHECKING:
    import argparse

    from m3fast import Engine
    from m3fast.evaluate import Comparison, Dataset, Evaluation

XQUAD_LANGUAGES = ["ar", "de", "en", "es", "ru", "th", "tr", "zh"]
LIBRARIES = ("torch", "numpy", "transformers", "ir-measures", "pytrec-eval-terrier")


def run(args: argparse.Namespace) -> int:
    """Print a table per measure, and write the files that were asked for.

    Raises:
        M3FastError: bad data, arguments or model.
        OSError: a file cannot be read or written.
    """
    need_library()
    check_output("--json", args.json)
    check_plot(args.plot)
    hybrid_weights(_weights(args.weights))
    source, datasets = _datasets(args)
    check_against(args)
    engine = load(args, args.model, args.dtype)
    other = reference(args, engine)
    started = time.perf_counter()
    found, compared = _evaluate(engine, other, datasets, args)
    seconds = time.perf_counter() - started
    own = f"{model_name(args.model)}, {dtype_name(engine)}"
    heading = f"{own}, on {source}"
    parts = [heading, *_notes(engine, found, args.weights)]
    if other is not None and compared is not None:
        parts[0] = f"{own}, against {against_title(args, other)}, on {source}"
        parts += tables(compared, *labels(args, engine, other))
    else:
        parts += _tables(found)
    print("\n".join(parts))
    if args.json is not None:
        _write_json(engine, found, other, compared, source, seconds, args)
    if args.plot is not None:
        draw(found, f"{heading}\n{_how(found, args.weights)}", args.plot)
    return 0


def _weights(text: str) -> Any:
    """Three numbers if they are some, else a name, right or wrong."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        return text


def _datasets(args: argparse.Namespace) -> tuple[str, list[Dataset]]:
    """What the data is called, and the datasets chosen."""
    languages: list[str] | None = args.languages and args.languages.split(",")
    paths: list[Path] = args.data
    if not paths and (xquad := _xquad()) is not None:
        source, every = "XQuAD in ../shared/data/xquad", load_dataset(xquad, "squad")
        languages = languages or XQUAD_LANGUAGES
    elif not paths:
        every = builtin()
        size = len(every[0].documents)
        source = (
            f"the built-in set ({size} texts, questions in other words than theirs: hard, and too "
            "few to compare models)"
        )
    else:
        source = ", ".join(map(str, paths))
        every = []
        for path in paths:
            every += load_dataset(path, args.format, split=args.split)
    names = [data.name for data in every]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"DATA: expected each language or folder name once, found {twice!r} again")
    target: str | None = args.cross
    if target is None:
        return source, pick(every, languages or names)
    if target not in names:
        raise InputError(f"--cross: expected one of {', '.join(names)}, found {target!r}")
    return source, cross(pick(every, [*(languages or names), target]), target)


def _xquad() -> Path | None:
    """The folder beside a source checkout; an installed package has none."""
    root = Path(m3fast.__file__).resolve().parents[2]
    folder = root.parent / "shared" / "data" / "xquad"
    return folder if (root / "pyproject.toml").is_file() and folder.is_dir() else None


def _evaluate(
    engine: Engine, other: Engine | None, datasets: list[Dataset], args: argparse.Namespace
) -> tuple[Evaluation, Comparison | None]:
    from tqdm import tqdm

    show = sys.stderr.isatty() if args.progress is None else args.progress
    total = n_texts(datasets) * (1 if other is None else 2)
    with tqdm(total=total, unit=" texts", disable=not show) as progress:
        how: Any = {
            "weights": _weights(args.weights),
            "rerank": args.rerank,
            "progress": progress.update,
        }
        if other is None:
            return evaluate(engine, datasets, **how), None
        compared = compare(engine, other, datasets, **how)
        return compared.found, compared


def _notes(engine: Engine, found: Evaluation, weights: str) -> list[str]:
    parts = [_how(found, weights)]
    if engine.config.random_weights:
        parts.append("Its weights are random: what it finds, it finds by shared word pieces.")
    if cut := sum(result.cut for result in found.results):
        parts.append(f"{cut:,} texts were cut at {engine.max_length:,} tokens.")
    if bits := int8_bits(engine):
        parts.append(f"What int8 layers read has {bits} bits on this CPU.")
    return parts


def _tables(found: Evaluation) -> list[str]:
    parts: list[str] = []
    for name in MEASURES:
        rows = [
            [r.name, f"{r.queries:,}", f"{r.documents:,}"]
            + [f"{100 * r.values[mode][name]:.1f}" for mode in found.modes]
            for r in found.results
        ]
        if len(rows) > 1:
            mean = found.mean
            rows.append(
                ["mean", "", "", *(f"{100 * mean[mode][name]:.1f}" for mode in found.modes)]
            )
        header = [name, "queries", "documents", *map(title, found.modes)]
        parts.append("\n" + table(header, rows, left=1))
    return parts


def _how(found: Evaluation, name: str) -> str:
    """How documents were ranked, and what the hybrids weigh."""
    if "all" not in found.modes:
        return "All documents scored. This model has a dense head only."
    how = "All documents scored in every mode"
    if found.rerank:
        how = f"Multi-vector and all re-rank dense's best {found.rerank:,}"
    two, three = (",".join(f"{w:g}" for w in found.weights[m]) for m in ("dense+sparse", "all"))
    return f"{how}. Weights {name}: {two} and {three}. Figures are per cent."


def _write_json(
    engine: Engine,
    found: Evaluation,
    other: Engine | None,
    compared: Comparison | None,
    source: str,
    seconds: float,
    args: argparse.Namespace,
) -> None:
    report: dict[str, Any] = {
        "command": shlex.join(["m3fast", *args.argv]),
        "model": args.model,
        "data": source,
        "device": str(engine.device),
        "dtype": dtype_name(engine),
        **({"int8_bits": bits} if (bits := int8_bits(engine)) else {}),
        "threads": torch.get_num_threads(),
        "max_length": engine.max_length,
        "pooling": engine.options.pooling,
        "weights": {"name": args.weights, **found.weights},
        "rerank": found.rerank,
        "seconds": round(seconds, 3),
        "versions": {
            "m3fast": m3fast.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in LIBRARIES},
        },
        "results": results_json(found),
        "mean": found.mean,
    }
    if other is not None and compared is not None:
        report["against"] = against_json(compared, args, other)
    partial = args.json.with_name(f".{args.json.name}.part")
    partial.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(args.json)

