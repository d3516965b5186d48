"""`m3fast encode`: what the output holds, its checks, a dense-only model, memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoints import SMALL_WIDTH, make_checkpoint
from encoderuns import CORPUS, assert_fails, encode, left_behind, write_jsonl

import m3fast
from m3fast.cli.store import read_ids, read_npz

ROOT = Path(__file__).resolve().parents[2]


def test_npz_holds_what_the_engine_gives(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    options = ["--model", "m3fast-tiny", "--part-size", 32, "--colbert-dtype", "float32"]
    assert encode(corpus, "-o", out, *options) == 0
    found, meta = read_npz(str(out))
    expected = m3fast.Engine.from_pretrained().encode(CORPUS)
    assert found.dense is not None and found.sparse is not None and found.colbert is not None
    assert expected.dense is not None and expected.sparse is not None
    assert expected.colbert is not None
    tolerance = 1e-6 if meta["dtype"] == "float32" else 2e-2
    np.testing.assert_allclose(found.dense, expected.dense, atol=tolerance)
    np.testing.assert_array_equal(found.sparse.indptr, expected.sparse.indptr)
    np.testing.assert_array_equal(found.sparse.indices, expected.sparse.indices)
    np.testing.assert_allclose(found.sparse.values, expected.sparse.values, atol=tolerance)
    np.testing.assert_array_equal(found.colbert.offsets, expected.colbert.offsets)
    np.testing.assert_allclose(found.colbert.values, expected.colbert.values, atol=tolerance)
    np.testing.assert_array_equal(found.n_tokens, expected.n_tokens)
    assert found.sparse.vocab_size == expected.sparse.vocab_size
    assert (meta["texts"], meta["model"]) == (len(CORPUS), "m3fast-tiny")
    assert left_behind(tmp_path, corpus.name, out.name) == set()


def test_parquet_holds_what_npz_holds(tmp_path: Path, small_windows: None) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    rows = [{"id": f"text {i}", "text": text} for i, text in enumerate(CORPUS)]
    source = write_jsonl(tmp_path / "corpus.jsonl", rows)
    for name in ("a.npz", "a.parquet"):
        options = ["--part-size", 32, "--max-length", 16]
        assert encode(source, "-o", tmp_path / name, *options) == 0
    found, meta = read_npz(str(tmp_path / "a.npz"))
    assert found.dense is not None and found.sparse is not None and found.colbert is not None
    table = pq.read_table(tmp_path / "a.parquet")
    assert table["id"].to_pylist() == [row["id"] for row in rows]
    assert table["id"].to_pylist() == read_ids(str(tmp_path / "a.npz"))
    np.testing.assert_array_equal(np.array(table["dense"].to_pylist(), np.float32), found.dense)
    pairs = zip(table["sparse_indices"].to_pylist(), table["sparse_values"].to_pylist(),
                strict=True)  # fmt: skip
    assert [dict(zip(*pair, strict=True)) for pair in pairs] == found.sparse.to_dicts()
    for row, vectors in zip(table["colbert"].to_pylist(), found.colbert, strict=True):
        np.testing.assert_array_equal(np.array(row, np.float16), vectors)
    assert table["n_tokens"].to_pylist() == found.n_tokens.tolist()
    assert table["truncated"].to_pylist() == found.truncated.tolist()
    assert found.truncated.any() and not found.truncated.all()
    assert json.loads(table.schema.metadata[b"m3fast"]) == meta


def test_flags_pick_outputs(corpus: Path, tmp_path: Path) -> None:
    assert encode(corpus, "-o", tmp_path / "a.npz", "--sparse") == 0
    found, _ = read_npz(str(tmp_path / "a.npz"))
    assert found.dense is None and found.colbert is None and found.sparse is not None


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_empty_input_gives_an_empty_output(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "empty.txt").touch()
    out = tmp_path / f"out.{suffix}"
    if suffix == "parquet":
        pq = pytest.importorskip("pyarrow.parquet")
    assert encode(tmp_path / "empty.txt", "-o", out) == 0
    if suffix == "parquet":
        assert pq.read_table(out).num_rows == 0
        assert "colbert" in pq.read_schema(out).names
        return
    found, meta = read_npz(str(out))
    assert found.dense is not None and found.sparse is not None and found.colbert is not None
    assert (len(found), len(found.sparse), len(found.colbert), meta["texts"]) == (0, 0, 0, 0)
    assert found.dense.shape == (0, SMALL_WIDTH)
    assert found.colbert.values.shape == (0, SMALL_WIDTH)


def test_bad_output(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "old.npz").write_bytes(b"old")
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "in.parquet").write_bytes(b"in")
    for name, named in (
        ("old.npz", "--overwrite"),
        ("folder.npz", "found the folder"),
        ("out.csv", ".npz or .parquet"),
        ("no/such/folder/out.npz", "existing folder"),
        ("/proc/out.npz", "/proc/out.npz"),
    ):
        assert_fails(capsys, [corpus, "-o", tmp_path / name], named)
    pytest.importorskip("pyarrow")
    same: list[object] = [tmp_path / "in.parquet", "-o", tmp_path / "in.parquet", "--overwrite"]
    assert_fails(capsys, same, "another file than the input")
    assert (tmp_path / "old.npz").read_bytes() == b"old"
    expected = (corpus.name, "old.npz", "folder.npz", "in.parquet")
    assert left_behind(tmp_path, *expected) == set()


def test_output_is_checked_before_the_model_is_loaded(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(m3fast.Engine, "from_pretrained", fail)
    assert encode(corpus, "-o", "/proc/out.npz") == 2
    assert encode(tmp_path / "missing.txt", "-o", tmp_path / "out.npz") == 2


def test_missing_pyarrow_names_the_extra(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert_fails(capsys, [corpus, "-o", tmp_path / "out.parquet"], "m3fast[parquet]")
    assert_fails(capsys, [tmp_path / "in.parquet", "-o", tmp_path / "o.npz"], "m3fast[parquet]")


def test_dense_only_model(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_checkpoint(tmp_path / "model", m3_heads=False, layers=1)
    argv: list[object] = [corpus, "-o", tmp_path / "out.npz", "--model", model]
    assert_fails(capsys, [*argv, "--colbert"], "colbert")
    assert encode(*argv) == 0
    assert set(np.load(tmp_path / "out.npz")) == {"n_tokens", "truncated", "dense", "meta"}


def test_progress_bar_knows_the_total(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert encode(corpus, "-o", tmp_path / "out.npz", "--progress") == 0
    assert "108/108" in capsys.readouterr().err
    assert encode(corpus, "-o", tmp_path / "o.npz", "--no-progress") == 0
    assert "/108" not in capsys.readouterr().err


MEMORY = """
import sys
import m3fast.engine.engine
from m3fast.cli import main
m3fast.engine.engine.WINDOW_TEXTS = 50
for output in sys.argv[2:]:
    source = output.rpartition(".")[0] + ".txt"
    options = ["--model", sys.argv[1], "--part-size", "100", "--colbert-dtype", "float32"]
    options += ["--dtype", "float32"]  # bf16 keeps a kernel for each number of rows: with AMX, 1 MB
    assert main(["encode", source, "-o", output, *options]) == 0
    # Of this program alone; ru_maxrss begins with what its parent held.
    [peak] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    print(peak.split()[1])
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    """An encoder that costs little and whose output is large: 4 KB a token."""
    pytest.importorskip("pyarrow")
    size = dict(hidden=8, heads=1, layers=1, ffn=8, colbert_dim=1024)
    model = make_checkpoint(tmp_path / "model", **size)
    outputs: list[Path] = []
    for count in (1_000, 3_000):
        lines = "".join(f"a rather short text {i}\n" for i in range(count))
        (tmp_path / f"{count}.txt").write_text(lines)
        outputs += [tmp_path / f"{count}.{suffix}" for suffix in ("npz", "parquet")]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(model), *map(str, outputs)],
        env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    _, small, _, large = (int(line) << 10 for line in done.stdout.split())
    # What one copy of the output in memory would have added.
    copy = outputs[2].stat().st_size - outputs[0].stat().st_size
    assert copy > 50 << 20
    assert large - small < copy / 2, (large - small) >> 20
