"""`m3fast quantize` from one shell command to the next."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from checkpoints import make_checkpoint

from m3fast.cli import main

SCORE = ["score", "--query", "What is BGE M3?", "--passage", "An embedding model.", "--json"]


def test_written_and_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = make_checkpoint(tmp_path / "floats"), tmp_path / "int8"
    assert main(["quantize", str(model), "-o", str(out)]) == 0
    shown = capsys.readouterr().out
    size = (out / "model.safetensors").stat().st_size / 1e6
    assert shown.startswith(f"{out}: {size:,.1f} MB of weights, 5.")
    assert shown.count("\n") == 1
    scores: list[dict[str, object]] = []
    for argv in (["--model", str(out)], ["--model", str(model), "--dtype", "int8"]):
        assert main([*SCORE, *argv, "--device", "cpu"]) == 0
        scores.append(json.loads(capsys.readouterr().out))
    assert scores[0] == scores[1]


def test_one_line_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("a file")
    assert main(["quantize", "m3fast-tiny", "-o", str(tmp_path / "out")]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error == (
        f"m3fast: error: output: expected a new or an empty folder, found '{tmp_path}/out'\n"
    )
