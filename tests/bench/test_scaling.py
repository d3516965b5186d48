"""Exponents fitted to costs, and the processes that the benchmarks talk to."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from bench.core import child, measure
from bench.cpu import exponents
from bench.peers import infinity

Sampled = measure.Sampled


@pytest.mark.parametrize("power", [0.0, 1.0, 1.05, 2.0])
def test_exponent_of_a_power_law(power: float) -> None:
    sizes = [16, 64, 256, 1024]
    assert exponents.exponent(sizes, [3e-4 * n**power for n in sizes]) == pytest.approx(power)


def test_exponent_is_the_least_squares_slope() -> None:
    sizes, seconds = [1, 2, 10, 40], [0.5, 0.4, 3.0, 9.0]
    slope = np.polyfit(np.log(sizes), np.log(seconds), 1)[0]
    assert exponents.exponent(sizes, seconds) == pytest.approx(slope)
    for wrong in ([1], [1, 2, 3]):
        with pytest.raises(ValueError, match="pairs"):
            exponents.exponent(wrong, [1.0] if len(wrong) == 1 else [1.0, 2.0])


def test_a_round_gives_an_exponent() -> None:
    # Calls of equal seconds with 4, 2 and 1 texts: a text's cost grows as its length.
    sizes = {n: Sampled([1.0, 10.0]) for n in (10, 20, 40)}
    found = exponents.by_round(sizes, {10: 4, 20: 2, 40: 1})
    assert found.seconds == pytest.approx([1.0, 1.0]) and not found.wrong
    # Rounds that a size sat out have none.
    sizes[40].seconds = [2.0]
    assert exponents.by_round(sizes, dict.fromkeys(sizes, 1)).seconds == pytest.approx([0.5])
    sizes[20] = Sampled([], "dense off by 1")
    found = exponents.by_round(sizes, dict.fromkeys(sizes, 1))
    assert found.wrong == "dense off by 1" and found.seconds == []


ECHO = """
import json, sys
print(json.dumps({"ready": 1}), flush=True)
for line in sys.stdin:
    if "stop" in line:
        sys.exit("no such model")
    print(line, end="", flush=True)
"""


def _talk(script: str, timeout: float = 60) -> child.Talk:
    return child.Talk([sys.executable, "-c", script], os.environ, timeout)


def test_a_process_answers_line_by_line_and_its_last_words_are_kept() -> None:
    talk = _talk(ECHO)
    try:
        assert talk.hello == {"ready": 1}
        array = np.arange(6, dtype=np.float32).reshape(2, 3)
        answer = talk.ask({"x": child.pack(array)})
        assert np.array_equal(child.unpack(answer["x"]), array)
        with pytest.raises(RuntimeError, match="exit status 1: no such model"):
            talk.ask({"stop": True})
    finally:
        talk.close()


def test_a_process_that_is_silent_is_ended() -> None:
    with pytest.raises(RuntimeError, match=r"silent for 0\.2 s"):
        _talk("import time; time.sleep(60)", timeout=0.2)


def test_a_candidate_may_time_itself() -> None:
    watch = child.Stopwatch()
    stop = watch()
    watch.took = 5.0
    assert stop() == 5.0
    assert 0 <= watch()() < 5


def test_folder_for_sentence_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(infinity, "CACHE", tmp_path / "cache")
    path = tmp_path / "model"
    path.mkdir()
    config = {"hidden_size": 8, "max_position_embeddings": 34}
    for name in ("config.json", "model-fused.onnx", "modules.json"):
        (path / name).write_text(json.dumps(config))
    for _ in range(2):
        made = infinity.folder(path)
        assert json.loads((made / "config.json").read_text()) == config
        assert json.loads((made / "1_Pooling/config.json").read_text())["pooling_mode_cls_token"]
        assert json.loads((made / "sentence_bert_config.json").read_text())["max_seq_length"] == 32
        assert [m["path"] for m in json.loads((made / "modules.json").read_text())] == [
            "", "1_Pooling", "2_Normalize",
        ]  # fmt: skip
        assert not (made / "model-fused.onnx").exists()
    assert json.loads((path / "modules.json").read_text()) == config, "the model is left as it is"
    monkeypatch.setattr(infinity, "PYTHON", tmp_path / "none")
    with pytest.raises(measure.Absent, match="make bench-peers"):
        infinity.Infinity(path, 8, 1)
