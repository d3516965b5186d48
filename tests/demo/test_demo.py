"""The demo: what it prints, the picture it draws, and how it fails."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from checkpoints import TINY, make_checkpoint
from rich.cells import cell_len

import m3fast
from m3fast import Engine
from m3fast.demo import corpus as texts
from m3fast.demo import parity
from m3fast.demo.__main__ import main

SRC = Path(m3fast.__file__).parents[1]
MODES = ("dense", "sparse", "multi-vector", "hybrid")


@pytest.fixture(scope="module")
def default_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("demo")
    raw = io.BytesIO()
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(io.TextIOWrapper(raw, "utf-8", write_through=True)),
        warnings.catch_warnings(record=True) as warned,
    ):
        warnings.simplefilter("always")
        assert main(["--device", "cpu", "--dtype", "float32"]) == 0
        output = raw.getvalue().decode()
    # What matplotlib warns of where a font lacks a letter.
    assert not [w for w in warned if "Glyph" in str(w.message)]
    return output, folder


@pytest.fixture(autouse=True)
def few_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m3fast.demo.__main__.RUNS", 1)


@pytest.fixture(scope="module")
def corpus() -> texts.Corpus:
    return texts.load_corpus()


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that says of itself that nobody trained it."""
    folder = make_checkpoint(tmp_path_factory.mktemp("models") / "untrained")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"m3fast_random_weights": True}))
    return folder


def test_corpus_is_many_languages_and_both_kinds_of_query(corpus: texts.Corpus) -> None:
    ids = [p.id for p in corpus.passages]
    assert len(ids) == len(set(ids)) >= 20
    assert len({p.lang for p in corpus.passages}) >= 8
    crosses = [corpus.crosses(query) for query in corpus.queries]
    assert crosses.count(True) >= 3 and crosses.count(False) >= 3
    assert all(query.relevant for query in corpus.queries)


def test_every_query_gets_a_table_with_marks(
    default_run: tuple[str, Path], corpus: texts.Corpus
) -> None:
    output, _ = default_run
    assert len(re.findall(r"^ *# +dense +sparse +multi-vector +hybrid *$", output, re.M)) == len(
        corpus.queries
    )
    assert all(query.text in output for query in corpus.queries)
    assert re.search(r"^ *1 +✓ dishwasher-en +[\d.]+ +✓ dishwasher-en", output, re.M)
    assert "\x1b" not in output
    too_wide = [x for x in output.splitlines() if cell_len(x) > 100 and "kernels" not in x]
    assert not [x for x in too_wide if not x.startswith("picture")]


def test_printed_ranks_are_the_engine_s(
    default_run: tuple[str, Path], corpus: texts.Corpus
) -> None:
    output, _ = default_run
    engine = Engine.from_pretrained("m3fast-tiny", device="cpu", dtype="float32")
    passages = engine.encode([p.text for p in corpus.passages])
    queries = engine.encode([q.text for q in corpus.queries])
    assert passages.dense is not None and queries.dense is not None
    order = np.argsort(-(queries.dense @ passages.dense.T), axis=1)
    places = [
        1 + min(row.tolist().index(i) for i in query.relevant)
        for row, query in zip(order, corpus.queries, strict=True)
    ]
    assert [int(n) for n in re.findall(r"^ *✓ +rank (\d+)", output, re.M)] == places
    recall, mrr = places.count(1) / len(places), np.mean(1 / np.array(places))
    assert re.search(rf"^ *dense +{recall:.2f} +{mrr:.2f} ", output, re.M)
    assert all(re.search(rf"^ *{mode} +\d\.\d\d +\d\.\d\d", output, re.M) for mode in MODES)


def test_ranks_well(corpus: texts.Corpus) -> None:
    engine = Engine.from_pretrained("m3fast-tiny", device="cpu", dtype="float32")
    found = engine.encode(corpus.texts)
    n = len(corpus.passages)
    scores = texts.score(found[n:], found[:n])
    same = [i for i, query in enumerate(corpus.queries) if not corpus.crosses(query)]
    across = [i for i in range(len(corpus.queries)) if i not in same]
    for mode in scores:
        hits = texts.first_hits(mode, scores[mode], corpus.queries)
        # Chance finds an answer first once in 8 to 24 queries.
        assert texts.quality([hits[i] for i in same]).recall_at_1 >= 0.8, mode
        if mode == "dense":
            assert texts.quality([hits[i] for i in across]).mrr >= 0.5


def test_says_what_was_timed(default_run: tuple[str, Path]) -> None:
    output, _ = default_run
    assert re.search(r"34 texts, [\d,]+ tokens, dense \+ sparse \+ colbert: [\d.]+ ms, ", output)
    assert re.search(r"[\d,]+ tokens/s", output)
    assert "after a warm-up" in output
    assert "random" not in output and "plain torch" not in output


def test_random_weights_are_named_and_compared_with_plain_torch(
    untrained: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = ["--out", str(tmp_path), "--device", "cpu", "--dtype", "float32"]
    assert main(["--model", str(untrained), *options]) == 0
    output = capsys.readouterr().out
    assert "untrained has random weights: rankings show mechanics, not quality" in output
    assert "untrained has random weights: what it finds, it finds by shared word pieces" in output
    found = re.search(r"^ *float32 +(\S+) +(\S+) +(\S+) +34 of 34 texts", output, re.M)
    assert found is not None
    assert all(0 < float(value) < 1e-5 for value in found.groups())


def test_picture_is_there_and_not_blank(default_run: tuple[str, Path]) -> None:
    from matplotlib.image import imread

    output, folder = default_run
    named = re.search(r"^picture: (.+)$", output, re.M)
    assert named is not None
    image = imread(folder / named[1])
    height, width = image.shape[:2]
    assert height > 400 and width > 1000
    heat_map = image[height // 3 : height // 2 : 4, width // 4 : width // 2 : 4, :3]
    assert len(np.unique(heat_map.reshape(-1, 3), axis=0)) > 40
    assert [p.name for p in (folder / named[1]).parent.iterdir()] == [Path(named[1]).name]


def test_bfloat16_is_compared_beside_float32(
    untrained: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = ["--out", str(tmp_path), "--device", "cpu", "--dtype", "bfloat16"]
    assert main(["--model", str(untrained), *options]) == 0
    output = capsys.readouterr().out
    coarse = re.search(r"^ *bfloat16 +(\S+)", output, re.M)
    fine = re.search(r"^ *float32 +(\S+)", output, re.M)
    assert coarse is not None and fine is not None
    assert float(fine[1]) < 1e-5 < float(coarse[1]) < 0.1


def test_dense_only_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model, out = tmp_path / "my-model", tmp_path / "out"
    shutil.copytree(TINY, model, ignore=shutil.ignore_patterns("*.pt"))
    assert main(["--model", str(model), "--out", str(out), "--device", "cpu"]) == 0
    output = capsys.readouterr().out
    assert "my-model has no sparse and no multi-vector head: dense only, no picture" in output
    assert "hybrid" not in output and "picture:" not in output
    assert not list(out.iterdir())


@pytest.mark.slow
def test_wrong_model_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "m3fast.demo", "--model", "./no-such-model"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(SRC), "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "no-such-model" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("option", ["--dtype", "--device"])
def test_wrong_choice_is_one_line(
    option: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["--out", str(tmp_path), option, "abacus"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert "abacus" in captured.err and option[2:] in captured.err


def test_unwritable_output_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    assert main(["--out", str(tmp_path / "taken")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1 and "taken" in captured.err


def test_a_passage_that_shares_no_token_is_not_found() -> None:
    queries = (texts.Query("en", "a", frozenset({0})), texts.Query("en", "b", frozenset({1})))
    scores = np.array([[0.0, 0.0, 0.5], [0.1, 0.3, 0.2]], np.float32)
    assert texts.first_hits("sparse", scores, queries) == [None, 1]
    assert texts.first_hits("dense", scores, queries) == [2, 1]
    assert texts.quality([None, 1, 4]) == texts.Quality(1 / 3, (0 + 1 + 0.25) / 3)


def test_parity_sees_every_output(tiny_in_floats: Path) -> None:
    engine = Engine.from_pretrained("m3fast-tiny", device="cpu", dtype="float32")
    sentences = ["the moon and the sea", "der Mond"]
    found = engine.encode(sentences)
    assert found.dense is not None and found.sparse is not None and found.colbert is not None
    expected = parity.reference(tiny_in_floats, sentences, engine.options.dropped)
    exact = parity.compare(found, expected)
    assert max(exact.dense, exact.sparse, exact.colbert) < 1e-5
    assert exact.same_ids == 2
    found.dense[1, 3] += 0.5
    found.sparse.values[0] += 0.25
    found.colbert.values[-1, 0] += 0.125
    off = parity.compare(found, expected)
    assert (off.dense, off.sparse, off.colbert) == pytest.approx((0.5, 0.25, 0.125), abs=1e-5)
    expected[1].sparse[7777] = 0.75
    missing = parity.compare(found, expected)
    assert missing.sparse == pytest.approx(0.75)
    assert missing.same_ids == 1


def test_marks_survive_an_ascii_output(
    capsys: pytest.CaptureFixture[str], corpus: texts.Corpus
) -> None:
    from m3fast.demo import tables

    sys.stdout.reconfigure(encoding="ascii")  # pyright: ignore[reportAttributeAccessIssue]
    scores = np.zeros((len(corpus.queries), len(corpus.passages)), np.float32)
    scores[0, next(iter(corpus.queries[0].relevant))] = 1.0
    tables.print_rankings(tables.make_console(), corpus, {"dense": scores})
    assert re.search(r"^ *1 \| \* dishwasher-en +1\.000", capsys.readouterr().out, re.M)


def test_a_miss_has_no_mark(capsys: pytest.CaptureFixture[str], corpus: texts.Corpus) -> None:
    from m3fast.demo import tables

    scores = np.zeros((len(corpus.queries), len(corpus.passages)), np.float32)
    wrong = next(i for i in range(len(corpus.passages)) if i not in corpus.queries[0].relevant)
    scores[0, wrong] = 1.0
    tables.print_rankings(tables.make_console(), corpus, {"dense": scores})
    output = capsys.readouterr().out
    assert re.search(rf"^ *1 +{corpus.passages[wrong].id} +1\.000", output, re.M)
