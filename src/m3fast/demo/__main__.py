"""Rank a small multilingual corpus with every output, time it, and draw a picture."""

from __future__ import annotations

import argparse
import importlib.util
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from m3fast.errors import M3FastError

if TYPE_CHECKING:
    from rich.console import Console

    from m3fast import Embeddings, Engine
    from m3fast.demo.corpus import Corpus
    from m3fast.demo.picture import TokenRow

RUNS, SECONDS = 5, 20.0  # timed calls, and when to stop repeating a slow one
LATIN = {"de", "en", "es", "fr", "tr"}


def main(argv: list[str] | None = None) -> int:
    """Run the demo; 0 when it worked, 2 with one line on stderr when it could not."""
    parser = argparse.ArgumentParser(prog="python -m m3fast.demo", description=__doc__)
    parser.add_argument("--model", default="m3fast-tiny", help="name, folder or hub id")
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="picture's folder")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda[:n]")
    parser.add_argument(
        "--dtype", default="auto", help="auto, float32, bfloat16, float16 or int8"
    )
    args = parser.parse_args(argv)
    missing = [name for name in ("rich", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        return _fail(f"{' and '.join(missing)} not installed: pip install {' '.join(missing)}")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        run(args.model, args.out, args.device, args.dtype)
    except (M3FastError, OSError) as error:
        return _fail(str(error))
    return 0


def _fail(reason: str) -> int:
    print(f"m3fast.demo: {reason}", file=sys.stderr)
    return 2


def run(model: str, out: Path, device: str, dtype: str) -> None:
    """The whole demo.

    Raises:
        M3FastError: the model cannot be loaded, or an argument is out of range.
        OSError: the picture cannot be written.
    """
    started = time.perf_counter()
    from m3fast import Engine
    from m3fast.demo import corpus as texts
    from m3fast.demo import tables

    imported = time.perf_counter()
    engine = Engine.from_pretrained(model, device=device, dtype=dtype)
    loaded = time.perf_counter()
    console = tables.make_console()
    console.rule("m3fast demo")
    _print_machine(console, model, engine)
    console.print(f"start    import {imported - started:.2f} s, load {loaded - imported:.2f} s")
    untrained = engine.config.random_weights
    if untrained:
        console.print(
            f"[yellow]{engine.path.name} has random weights: rankings show mechanics, not quality"
        )
    if not engine.outputs.sparse:
        console.print(
            f"{engine.path.name} has no sparse and no multi-vector head: dense only, no picture"
        )

    corpus = texts.load_corpus()
    embeddings = engine.encode(corpus.texts, show_progress=False)
    _print_timings(console, engine, corpus, embeddings)
    n = len(corpus.passages)
    passages, queries = embeddings[:n], embeddings[n:]
    scores = texts.score(queries, passages)
    tables.print_rankings(console, corpus, scores)
    console.print()
    console.rule("summary")
    tables.print_quality(console, corpus, scores)
    if untrained:
        console.print(
            f"{engine.path.name} has random weights: what it finds, it finds by shared word pieces"
        )
    if untrained and engine.config.int8:
        console.print("not compared with transformers, which does not read int8")
    elif untrained and embeddings.colbert is not None:
        _print_parity(console, engine, corpus, embeddings)
    if embeddings.colbert is not None:
        picture = _draw(out / "alignment.png", engine, corpus, embeddings, untrained)
        console.print(f"picture: {picture}", soft_wrap=True)


def _print_machine(console: Console, model: str, engine: Engine) -> None:
    import torch

    from m3fast.kernels import native

    c = engine.config
    console.print(
        f"model    {model}: {c.n_layers} layers x {c.hidden_size}, {c.vocab_size:,} pieces",
        soft_wrap=True,
    )
    where = f"{_cpu_name()}, {torch.get_num_threads()} threads"
    if engine.device.type == "cuda":
        where = f"{torch.cuda.get_device_name(engine.device)} ({engine.device})"
    console.print(f"machine  {where}, {_name(engine.dtype)}, torch {torch.__version__}")
    kernels = "m3fast._C" if native.available else f"torch and numpy only: {native.why}"
    console.print(f"kernels  {kernels}", soft_wrap=True)


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


def _median_seconds(engine: Engine, batch: list[str]) -> tuple[float, int]:
    times: list[float] = []
    while len(times) < RUNS and sum(times) < SECONDS:
        start = time.perf_counter()
        engine.encode(batch, show_progress=False)
        times.append(time.perf_counter() - start)
    return statistics.median(times), len(times)


def _print_timings(console: Console, engine: Engine, corpus: Corpus, first: Embeddings) -> None:
    outputs = [name for name in ("dense", "sparse", "colbert") if getattr(engine.outputs, name)]
    tokens = int(first.n_tokens.sum())
    seconds, runs = _median_seconds(engine, corpus.texts)
    query = corpus.queries[0].text
    query_tokens = int(first.n_tokens[len(corpus.passages)])
    engine.encode([query], show_progress=False)
    query_seconds, query_runs = _median_seconds(engine, [query])
    console.print(
        f"encode   {len(first)} texts, {tokens:,} tokens, {' + '.join(outputs)}: "
        f"{seconds * 1e3:.1f} ms, {tokens / seconds:,.0f} tokens/s"
    )
    console.print(
        f"         one query of {query_tokens} tokens: {query_seconds * 1e3:.2f} ms\n"
        f"         medians of {runs} and {query_runs} calls after a warm-up; a call is text in, "
        "numpy arrays out"
    )


def _print_parity(console: Console, engine: Engine, corpus: Corpus, found: Embeddings) -> None:
    import torch

    from m3fast import Engine
    from m3fast.demo import parity, tables

    expected = parity.reference(engine.path, corpus.texts, engine.options.dropped)
    compared = {_name(engine.dtype): parity.compare(found, expected)}
    if engine.dtype != torch.float32:
        exact = Engine.from_pretrained(engine.path, device=str(engine.device), dtype="float32")
        compared["float32"] = parity.compare(
            exact.encode(corpus.texts, show_progress=False), expected
        )
    console.print()
    console.print("largest absolute difference from plain torch (transformers, float32, per text)")
    tables.print_parity(console, compared, len(expected))


def _draw(file: Path, engine: Engine, corpus: Corpus, found: Embeddings, untrained: bool) -> Path:
    """Draw the first query whose best passage, as its own text, is in Latin script."""
    from m3fast import scoring
    from m3fast.demo import picture

    n = len(corpus.passages)
    latin = [i for i, p in enumerate(corpus.passages) if p.lang in LATIN]
    q = next(i for i, query in enumerate(corpus.queries) if query.lang in LATIN)
    queries, passages = found[n:].colbert, found[:n].colbert
    if queries is None or passages is None:
        raise ValueError("found: expected embeddings with colbert")
    scores = scoring.colbert_scores(queries, passages)
    best = max(latin, key=lambda i: float(scores[q, i]))
    picture.draw(
        _token_row(engine, corpus.queries[q].text, found[n + q]),
        _token_row(engine, corpus.passages[best].text, found[best]),
        f"“{corpus.queries[q].text}” and its best passage, {corpus.passages[best].id}",
        f"{engine.path.name}, {_name(engine.dtype)}"
        + (": random weights, never trained" if untrained else ""),
        file,
    )
    return file


def _token_row(engine: Engine, text: str, found: Embeddings) -> TokenRow:
    import numpy as np

    from m3fast.demo.picture import TokenRow

    if found.sparse is None or found.colbert is None:
        raise ValueError("found: expected embeddings with sparse and colbert")
    ids = engine.tokenizer.encode([text], engine.max_length).ids.tolist()[1:]
    weights = found.sparse.to_dicts()[0]
    return TokenRow(
        [str(engine.tokenizer.convert_ids_to_tokens(i)) for i in ids],
        np.array([weights.get(i, 0.0) for i in ids], np.float32),
        found.colbert[0].astype(np.float32),
    )


if __name__ == "__main__":
    sys.exit(main())
