"""`m3fast encode`: turns a file of texts into a file of vectors, in memory that does not grow."""

from __future__ import annotations

import sys
import time
from collections import deque
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import m3fast
from m3fast.cli.corpus import STDIN, Corpus, need_pyarrow
from m3fast.cli.part_files import Parts
from m3fast.cli.store import LAYOUT, join, read_array, stored_arrays, write_npz
from m3fast.errors import InputError, NonFiniteError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from m3fast import Embeddings, Engine

# Arrays held before they become a part, so that ColBERT vectors of long texts do not pile up.
PART_BYTES = 64 << 20


def run(args: argparse.Namespace) -> int:
    """Encode, or go on encoding.

    Raises:
        M3FastError: bad input, arguments or model; nothing half-written stays.
        OSError: a file cannot be read or written.
    """
    started = time.perf_counter()
    corpus = Corpus.check(args.input, args.text_column, args.id_column)
    output = _check_output(args.output, corpus, args.overwrite)
    if args.id_column is None and not args.no_ids:
        corpus = corpus.with_ids()
    with Parts.opened(output) as parts:
        engine = m3fast.Engine.from_pretrained(
            args.model, device=args.device, dtype=args.dtype, max_length=args.max_length
        )
        wanted = [name for name in ("dense", "sparse", "colbert") if getattr(args, name)]
        flags: dict[str, Any] = dict.fromkeys(("dense", "sparse", "colbert"))
        if wanted:
            flags = {name: name in wanted for name in flags}
        given = {**flags, "prompt_name": args.prompt_name}
        nothing = engine.encode([], **given)  # an output without its head fails here
        outputs = [name for name in flags if getattr(nothing, name) is not None]
        prompt = engine.prompt(args.prompt_name)
        made_from = _manifest(engine, corpus, outputs, args.colbert_dtype, prompt)
        parts.resume(made_from, discard=args.overwrite)
        resumed = parts.n_texts
        parts.keep = corpus.path != STDIN
        try:
            _encode(engine, corpus, parts, given, args)
        except InputError:
            parts.keep = False  # the input must change, and with it the parts
            raise
        except (KeyboardInterrupt, OSError):
            if parts.keep and parts.files:
                kept = f"{parts.n_texts:,} texts are done; the same command goes on after them"
                print(f"m3fast: {kept}", file=sys.stderr)
            raise
        if not parts.files:
            parts.save(stored_arrays(nothing, None, args.colbert_dtype))
        _finish(parts, engine, args.model)
        counts = [(int(read_array(p, "n_tokens").sum()), int(read_array(p, "truncated").sum()))
                  for p in parts.files]
    tokens, cut = (sum(column) for column in zip(*counts, strict=True))
    seconds = time.perf_counter() - started
    before = f" ({resumed:,} of them by an earlier run)" if resumed else ""
    print(
        f"m3fast: {parts.n_texts:,} texts{before}, {tokens:,} tokens, {cut:,} texts cut at "
        f"{engine.max_length:,} tokens, {seconds:.1f} s: {output}",
        file=sys.stderr,
    )
    return 0


def _check_output(path: str, corpus: Corpus, overwrite: bool) -> Path:
    output = Path(path)
    if output.suffix.lower() not in (".npz", ".parquet"):
        raise InputError(f"output: expected .npz or .parquet, found {path!r}")
    if output.suffix.lower() == ".parquet":
        need_pyarrow("output")
    if not output.parent.is_dir():
        raise InputError(f"output: expected an existing folder, found {str(output.parent)!r}")
    if output.is_dir():
        raise InputError(f"output: expected a file, found the folder {path!r}")
    if output.exists():
        if corpus.path != STDIN and output.samefile(corpus.path):
            raise InputError(f"output: expected another file than the input, found {path!r}")
        if not overwrite:
            raise InputError(f"output: expected no such file or --overwrite, found {path!r}")
    return output


def _manifest(
    engine: Engine, corpus: Corpus, outputs: list[str], colbert_dtype: str, prompt: str = ""
) -> dict[str, Any]:
    """All that the vectors depend on; time stamps stand for the content of files."""
    source: dict[str, Any] = {"input": STDIN}
    if corpus.path != STDIN:
        stat = Path(corpus.path).stat()
        source = {
            "input": str(Path(corpus.path).resolve()),
            "input_size": stat.st_size,
            "input_time": stat.st_mtime_ns,
        }
    folders = (engine.path, *engine.path.glob("[0-9]_*"))
    files = sorted(f for folder in folders for f in folder.iterdir() if f.is_file())
    return {
        **source,
        "columns": [corpus.text_column, corpus.id_column],
        "model": str(engine.path.resolve()),
        "model_files": [
            [str(f.relative_to(engine.path)), f.stat().st_size, f.stat().st_mtime_ns] for f in files
        ],
        "pooling": engine.options.pooling,
        "prompt": prompt,
        "outputs": outputs,
        "max_length": engine.max_length,
        "dtype": str(engine.dtype).removeprefix("torch."),
        "device": engine.device.type,
        "colbert_dtype": colbert_dtype,
        "m3fast": m3fast.__version__,
        "layout": LAYOUT,
    }


def _encode(
    engine: Engine, corpus: Corpus, parts: Parts, flags: dict[str, Any], args: argparse.Namespace
) -> None:
    from tqdm import tqdm

    ids: deque[str | None] = deque()

    def texts() -> Iterator[str]:
        for record in islice(corpus.records(), parts.n_texts, None):
            ids.append(record.id)
            yield record.text

    show = sys.stderr.isatty() if args.progress is None else args.progress
    total = corpus.count() if show else None
    held: list[dict[str, Any]] = []
    # A part ends where a window ends, so a resumed run makes the same windows, bit for bit.
    with tqdm(total=total, initial=parts.n_texts, unit=" texts", disable=not show) as progress:
        windows = _counted(engine.encode_iter(texts(), **flags, show_progress=False), parts.n_texts)
        for window in windows:
            row_ids = [i for i in (ids.popleft() for _ in range(len(window))) if i is not None]
            held.append(stored_arrays(window, row_ids or None, args.colbert_dtype))
            progress.update(len(window))
            n_texts = sum(len(arrays["n_tokens"]) for arrays in held)
            n_bytes = sum(array.nbytes for arrays in held for array in arrays.values())
            if n_texts >= args.part_size or n_bytes >= PART_BYTES:
                parts.save(join(held))
                held = []
    if held:
        parts.save(join(held))


def _counted(windows: Iterator[Embeddings], before: int) -> Iterator[Embeddings]:
    """The windows; an error names a text by its place in the input, of which some are done."""
    try:
        yield from windows
    except NonFiniteError as error:
        raise error.shifted(before) from None


def _finish(parts: Parts, engine: Engine, model: str) -> None:
    meta = {
        "model": str(Path(model)),  # ./model/ is model
        "dtype": str(engine.dtype).removeprefix("torch."),
        "max_length": engine.max_length,
        "vocab_size": engine.config.vocab_size,
        "texts": parts.n_texts,
        "m3fast": m3fast.__version__,
    }
    with parts.finished() as out:
        if parts.output.suffix.lower() == ".npz":
            write_npz(parts.files, out, meta)
            return
        from m3fast.cli.parquet import write_parquet

        write_parquet(parts.files, out, meta)
