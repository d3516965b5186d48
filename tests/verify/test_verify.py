"""`m3fast verify`: passes on what is right, fails on what is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import TINY_CONFIG, make_checkpoint, small_folder

import m3fast
from m3fast.cli import main
from m3fast.kernels.int8 import Int8Rows, quantize_rows
from m3fast.kernels.linear import linear
from m3fast.model import encoder, encoder_int8
from m3fast.scoring import all_scores
from m3fast.verify import check, goldens

LEXICAL = Path(__file__).parents[3] / "shared/data/tokenizer/bge_m3_reference_lexical_weights.json"


@pytest.fixture(autouse=True)
def few_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "TEXTS", check.TEXTS[:7])


def report(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out)


def failed(found: dict[str, Any]) -> list[str]:
    return [check["name"] for check in found["checks"] if not check["ok"]]


@pytest.fixture(scope="module")
def small() -> str:
    return str(small_folder())


def test_tiny_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "m3fast-tiny"]) == 0
    shown = capsys.readouterr().out
    assert "not BGE-M3" in shown
    assert shown.endswith("all checks passed\n")
    for name in ("float32", "bfloat16", "float16", "colbert", "qkv"):
        assert name in shown


def test_json_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "m3fast-tiny", "--json", "--device", "cpu"]) == 0
    found = report(capsys)
    assert found["ok"] and found["device"] == "cpu"
    names = [(e["dtype"], e["head"]) for e in found["errors"]]
    assert names == [(d, h) for d in ("float32", "bfloat16", "float16", "int8")
                     for h in ("dense", "sparse", "colbert")]  # fmt: skip
    most = {"float32": 2e-6, "int8": 0.3}  # with 7 bits 0.17
    least = {"float32": 1 - 1e-9, "int8": 0.8}  # with 7 bits 0.86
    for error in found["errors"]:
        assert 0 < error["mean"] < error["max"] < most.get(error["dtype"], 2e-2)
        assert error["cosine"] > least.get(error["dtype"], 0.999)
    assert len(found["peaks"]) == TINY_CONFIG["num_hidden_layers"]
    assert all(peak["hidden"] > 0.5 for peak in found["peaks"])


def test_a_wrong_kernel_fails(
    small: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def tanh_gelu(
        x: torch.Tensor, weight: Any, bias: torch.Tensor, *, out: torch.Tensor, early: bool
    ) -> None:
        linear(x, weight, bias, out=out)
        out.copy_(torch.nn.functional.gelu(out, approximate="tanh"))

    monkeypatch.setattr(encoder, "linear_gelu", tanh_gelu)  # off by 4e-4 at most
    assert main(["verify", small, "--json"]) == 1
    assert "accuracy dense float32" in failed(report(capsys))
    assert main(["verify", small]) == 1
    assert "FAILED  accuracy dense float32" in capsys.readouterr().out


def test_wrong_bytes_fail(
    small: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def coarse(x: torch.Tensor, out: Int8Rows) -> Int8Rows:
        return quantize_rows(x.sign(), out)

    monkeypatch.setattr(encoder_int8, "quantize_rows", coarse)  # of what attention gives
    assert main(["verify", small, "--json"]) == 1
    assert "accuracy dense int8" in failed(report(capsys))


def test_a_folder_in_int8(genuine: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "m3fast-tiny", "--json"]) == 0
    found = report(capsys)
    assert found["goldens"].startswith("not checked: the folder's weights are in int8")
    errors = [error for error in found["errors"] if error["dtype"] == "int8"]
    assert len(errors) == 3
    for error in errors:  # of rows alone; plain torch rounds all else to bf16 too where we do not
        assert error["plain"] < 4 * error["max"]


@pytest.mark.parametrize(
    "options",
    [
        {"model_type": "bert", "pooling": "mean", "m3_heads": False},
        {"model_type": "roberta", "pooling": "last_token", "m3_heads": False},
        {"colbert_dim": 24, "hidden": 48, "heads": 3},
    ],
)
def test_other_layouts_pass(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any]
) -> None:
    model = make_checkpoint(tmp_path / "model", **options)
    assert main(["verify", str(model), "--json"]) == 0, capsys.readouterr().out
    heads = {error["head"] for error in report(capsys)["errors"]}
    assert heads == ({"dense", "sparse", "colbert"} if "hidden" in options else {"dense"})


@pytest.fixture
def genuine(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """m3fast-tiny in the role of BGE-M3: its shape and scores are the golden ones."""
    engine = m3fast.Engine.from_pretrained(dtype="float32")
    monkeypatch.setattr(
        goldens, "SHAPE", {name: getattr(engine.config, name) for name in goldens.SHAPE}
    )
    scores: dict[str, Any] = dict(
        all_scores(engine.encode(goldens.QUERIES), engine.encode(goldens.PASSAGES))
    )
    monkeypatch.setattr(goldens, "SCORES", scores)
    return scores


def test_goldens(
    tiny_in_floats: Path, genuine: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(tiny_in_floats)
    assert main(["verify", model, "--json"]) == 0
    found = report(capsys)
    names = {c["name"] for c in found["checks"] if c["name"].startswith("golden")}
    assert len(names) == 9
    genuine["sparse"] = genuine["sparse"] + [[0, 0], [0, 0.01]]
    assert main(["verify", model, "--json"]) == 1
    assert failed(report(capsys)) == ["golden sparse float32", "golden sparse float16"]
    assert main(["verify", model, "--json", "--skip-goldens"]) == 0
    assert report(capsys)["goldens"] == "not checked: --skip-goldens"


def test_genuine_goldens_are_those_of_the_reference() -> None:
    # FlagEmbedding's README also prints their weighted means, with weights 0.4, 0.2, 0.4.
    dense, sparse, colbert = (
        np.ravel(goldens.SCORES[head]) for head in ("dense", "sparse", "colbert")
    )
    two = [0.482503205537796, 0.23454029858112335, 0.2332356721162796, 0.5122477412223816]
    three = [0.6013619303703308, 0.3255828022956848, 0.32089319825172424, 0.6232916116714478]
    assert (0.4 * dense + 0.2 * sparse) / 0.6 == pytest.approx(two, abs=3e-4)
    assert 0.4 * dense + 0.2 * sparse + 0.4 * colbert == pytest.approx(three, abs=3e-4)
    assert goldens.SHAPE == {"vocab_size": 250002, "hidden_size": 1024, "n_layers": 24}


def test_lexical_fixture(small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["one text", "another, longer text", ""]
    engine = m3fast.Engine.from_pretrained(small, dtype="float32")
    rows = engine.encode(texts).sparse
    assert rows is not None
    items = [
        {"text": text, "lexical_weights": {str(i): w for i, w in row.items()}}
        for text, row in zip(texts, rows.to_dicts(), strict=True)
    ]
    file = tmp_path / "fixture.json"
    file.write_text(json.dumps({"items": items}))
    argv = ["verify", small, "--json", "--lexical-fixture", str(file)]
    assert main(argv) == 0
    assert "lexical fixture float32" in [c["name"] for c in report(capsys)["checks"]]
    items[0]["lexical_weights"]["5"] = 0.3  # an id that the text does not have
    file.write_text(json.dumps({"items": items}))
    assert main(argv) == 1
    assert failed(report(capsys)) == ["lexical fixture float32"]


@pytest.mark.parametrize("content", ["", "[]", '{"items": [{}]}', '{"items": [{"text": "a"}]}'])
def test_bad_fixture(
    small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    (tmp_path / "a.json").write_text(content)
    argv = ["verify", small, "--lexical-fixture", str(tmp_path / "a.json")]
    assert main(argv) == 2
    assert "a.json: expected {" in capsys.readouterr().err
    assert main([*argv[:-1], str(tmp_path / "none.json")]) == 2


def test_fixture_needs_a_sparse_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.json").write_text('{"items": []}')
    model = make_checkpoint(tmp_path / "model", m3_heads=False, layers=1)
    assert main(["verify", str(model), "--lexical-fixture", str(tmp_path / "a.json")]) == 2
    assert "sparse head" in capsys.readouterr().err


@pytest.mark.skipif(not LEXICAL.exists(), reason="needs the shared data")
def test_real_fixture_is_read() -> None:
    items = goldens.read_fixture(str(LEXICAL))
    assert items[0][0] == goldens.QUERIES[0]
    assert items[0][1][11679] == pytest.approx(0.2519, abs=1e-4)
    assert items[1][0] == goldens.PASSAGES[0]
    score = sum(w * items[1][1].get(i, 0.0) for i, w in items[0][1].items())
    assert score == pytest.approx(goldens.SCORES["sparse"][0][0], abs=1e-3)
