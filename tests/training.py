"""Small runs of m3fast.train: texts, a teacher, a model and the config of a run."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import make_checkpoint
from smalltokenizers import unigram

import m3fast

LANGUAGES = ("ar", "de", "en", "es", "ru", "th", "tr", "zh")


def pairs(*languages: str) -> list[dict[str, Any]]:
    """24 questions per language of the built-in set, each with two passages that do not answer."""
    texts = json.loads((Path(m3fast.__file__).parent / "data" / "eval.json").read_text())["texts"]
    rows = []
    for lang in languages or LANGUAGES:
        found = [both[lang] for both in texts.values()]
        for i, (query, passage) in enumerate(found):
            others = [found[(i + step) % len(found)][1] for step in (5, 11)]
            rows.append({"query": query, "pos": [passage], "neg": others, "lang": lang})
    return rows


def write_lines(file: Path, rows: Sequence[Any]) -> Path:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return file


def texts_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    """In the order of a teacher's rows."""
    return [
        text
        for row in rows
        for text in ([row["text"]] if "text" in row else [row["query"], *row["pos"], *row["neg"]])
    ]


def bag_of_words(texts: Sequence[str], size: int) -> np.ndarray:
    """float32 [texts, size]: fixed random vectors of words (letters of Chinese), summed."""
    out = np.zeros((len(texts), size), np.float32)
    for row, text in zip(out, texts, strict=True):
        for word in re.findall(r"[\u0e00-\u9fff]|\w+", text.lower()):
            row += np.random.default_rng(zlib.crc32(word.encode())).standard_normal(size)
    return out


def small_model(folder: Path, **options: Any) -> Path:
    """A random model with a vocabulary of a few hundred pieces, and its tokenizer."""
    files = folder.with_name(folder.name + "-tokenizer")
    files.mkdir(parents=True)
    backend = unigram()
    backend.save(str(files / "tokenizer.json"))
    return make_checkpoint(folder, tokenizer=files, vocab=backend.get_vocab_size(), **options)


def small_run(folder: Path, out: Path, *data: dict[str, Any], **values: Any) -> Path:
    """The TOML of nine steps on the files of the fixture `folder`, on one CPU in float32."""
    made: dict[str, Any] = dict(
        model=folder / "model", output=out, steps=9, batch_pairs=8, checkpoint_every=4,
        log_every=3, lr=1e-3, dtype="float32", device="cpu", query_length=64, passage_length=64,
    )  # fmt: skip
    tables = [
        {k: folder / v if k in ("path", "teacher") else v for k, v in table.items()}
        for table in data or ({"path": "pairs.jsonl"},)
    ]
    return write_config(out.with_suffix(".toml"), tables, **made | values)


def write_config(file: Path, data: Sequence[dict[str, Any]], **values: Any) -> Path:
    """A run's TOML; dict values become tables."""
    tables = {key: values.pop(key) for key in list(values) if isinstance(values[key], dict)}
    lines = [f"{key} = {_toml(value)}" for key, value in values.items()]
    for key, table in tables.items():
        lines += [f"[{key}]", *(f"{k} = {_toml(v)}" for k, v in table.items())]
    for table in data:
        lines += ["[[data]]", *(f"{k} = {_toml(v)}" for k, v in table.items())]
    file.write_text("\n".join(lines) + "\n")
    return file


def _toml(value: Any) -> str:
    # JSON's strings, numbers, booleans and arrays are TOML's too; nan and inf are spelt so.
    if isinstance(value, float):
        return repr(value)
    return json.dumps(str(value) if isinstance(value, Path) else value)
