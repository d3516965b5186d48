"""What the tests of whole runs share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from training import pairs, small_model, texts_of, write_lines

from m3fast.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("train")
    small_model(root / "model", hidden=24, heads=3, ffn=40)
    rows = pairs("en", "zh")
    write_lines(root / "pairs.jsonl", rows)
    write_lines(root / "texts.jsonl", [{"text": row["query"]} for row in rows])
    for name, shape in (("pairs", (len(texts_of(rows)), 24)), ("wide", (len(texts_of(rows)), 30))):
        np.save(root / f"{name}.npy", np.random.default_rng(0).standard_normal(shape))
    return root


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line with which `m3fast train` refuses these arguments."""

    def run(*argv: object) -> str:
        capsys.readouterr()
        assert main(["train", *map(str, argv), "--no-progress"]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("m3fast: error: ") and err.count("\n") == 1
        return err

    return run
