"""docs/int8.md: its tables are what the recorded runs give, and what they are made of."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from m3fast.evaluate import load_dataset

SCRIPTS = Path(__file__).parents[2] / "scripts" / "int8"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"int8_{name}", SCRIPTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


page = script("page")


def test_the_page_says_what_was_recorded() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.rewritten(text) == text, "run scripts/int8/page.py"
    assert len(page.runs()) >= 1
    for file in page.RECORD.glob("*.json"):  # no path of one machine
        its = json.loads(file.read_text(encoding="utf-8"))
        assert " /" not in its["command"] and not its["data"].startswith("/"), file.name


def recorded(folder: Path, name: str, bits: int, ndcg: float, **changes: Any) -> None:
    figures = {"p1": 0.5, "median": 0.75, "min": 0.25}
    its = {
        "int8_bits": bits,
        "max_length": 256,
        "versions": {"m3fast": "1", "torch": "2"},
        "results": [{"name": "en"}],
        "mean": {"dense": {"nDCG@10": ndcg}},
        "against": {
            "dtype": "float32",
            "mean": {"dense": {"nDCG@10": 0.5}},
            "agreement": {"mean": {"dense": {"best": bits / 10, "first": 0.875}}},
            "nearness": {"dense": {"documents": figures, "queries": figures}},
        },
    }
    file = folder / f"{name}-xquad-{bits}.json"
    file.write_text(json.dumps(its | changes), encoding="utf-8")


def test_rows(tmp_path: Path) -> None:
    recorded(tmp_path, "minilm", 8, 0.4988)
    recorded(tmp_path, "minilm", 7, 0.5)
    recorded(tmp_path, "e5-small", 8, 0.6)
    text = page.figures(tmp_path)
    assert (
        "| all-MiniLM-L6-v2 | XQuAD, en | dense | 50.0 | -0.12 | 0.00 | 80.0 | 70.0 | 87.5 | 87.5 |"
    ) in text
    assert "| e5-small | XQuAD, en | dense | 50.0 | +10.00 | – | 80.0 | – | 87.5 | – |" in text
    assert "| all-MiniLM-L6-v2 | XQuAD, en | 7 | 0.5000, 0.7500 |  |  |  |" in text
    recorded(tmp_path, "minilm", 7, 0.5, int8_bits=8)
    with pytest.raises(SystemExit, match=r"minilm-xquad-7.json: expected 7 bits"):
        page.runs(tmp_path)


def test_handbook(tmp_path: Path) -> None:
    handbook = script("handbook")
    body = "An answer to it. " * 20
    text = f"Download\n 1.2. One\n {body}\n1.2.1. Two\n short\n1.2.2. Three\n {body}3.1 is none."
    again = f" 1.3. Same\n {body}\n1.3.1. Same\n {body}"
    found = handbook.pieces({"sect.a.html": text, "sect.b.html": again, "chapter.html": text})
    assert {key: heading for key, (heading, _) in found.items()} == {
        "sect.a:0": "One",
        "sect.a:2": "Three",
    }
    handbook.write(found, tmp_path / "en")
    (data,) = load_dataset(tmp_path / "en")
    assert (data.name, data.queries.texts) == ("en", ("One", "Three"))
    assert data.documents.texts[0] == body.strip()
    assert data.qrels == {key: {key: 1} for key in found}
